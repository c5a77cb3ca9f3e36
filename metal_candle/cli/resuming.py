"""``finetune --resume``: the flags of a saved run, and those that may be given anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..error import CheckpointError, TrainingError

if TYPE_CHECKING:
    from ..training.state import TrainingState

NOTE = "finetune"
"""The key of the flags in a state's notes."""

MAY_DIFFER = {
    "config",
    "resume",
    "init_adapter",
    "output",
    "overwrite",
    "plan",
    "model",  # may have moved: what it holds is compared
    "data",
    "epochs",
    "steps",
    "eval_every",
    "save_every",
    "sample",
}
"""Flags that a resumed run may have otherwise: its steps depend on none of them, or are compared in another way."""


def read_state(context: typer.Context, folder: Path | None) -> Path | None:
    """Use a saved run's flags as the defaults of the command's. Raises as ``state_in``."""
    if folder is not None:
        state = state_in(folder)
        flags = {**state.notes.get(NOTE, {}), "output": str(folder), "overwrite": False}
        context.meta[NOTE] = state
        context.default_map = {**(context.default_map or {}), **flags}
    return folder


def state_in(folder: Path) -> TrainingState:
    """The state in a run's folder. Raises ``CheckpointError.LoadFailed`` where there is none."""
    from ..training.state import STATE, TrainingState

    if not (folder / STATE).is_file():
        holds = "is no folder" if not folder.is_dir() else f"holds no {STATE}, which a run keeps there"
        raise CheckpointError.LoadFailed(
            reason=f"--resume: {folder} {holds}; --init-adapter starts a new run from the weights of an adapter"
        )
    state = TrainingState.load(folder / STATE)
    if NOTE not in state.notes:
        raise CheckpointError.InvalidFormat(
            reason=f"--resume: {folder / STATE} was not written by metal-candle finetune; "
            "takes AdapterTrainer.resume in Python"
        )
    return state


def resumed_state(context: typer.Context) -> TrainingState | None:
    """The state that ``--resume`` read; ``None`` for a new run.

    Raises ``TrainingError.InvalidConfig``, which names it, for a flag that the run contradicts.
    """
    state: TrainingState | None = context.meta.get(NOTE)
    if state is None:
        return None
    kept, given = state.notes[NOTE], flags_of(context)
    if given["init_adapter"] is not None and given["init_adapter"] != kept.get("init_adapter"):
        raise TrainingError.InvalidConfig(reason="--resume and --init-adapter exclude each other")
    for name, value in given.items():
        if name not in MAY_DIFFER and name in kept and value != kept[name]:
            raise TrainingError.InvalidConfig(
                reason=f"--{name.replace('_', '-')} says {value}, the run in {context.params['resume']} has "
                f"{kept[name]}; leave the flag out, or start a new run with --init-adapter {context.params['resume']}"
            )
    return state


def check_length(context: typer.Context, trainer: Any, train: Any) -> None:
    """Raise ``TrainingError.InvalidConfig`` for a run that the flags would end before where it is."""
    kept, given = context.meta[NOTE].notes[NOTE], flags_of(context)
    updates = trainer.total_steps(train)
    changed = any(given[name] != kept.get(name) for name in ("steps", "epochs"))
    if changed and trainer.step > updates:
        flags = " and ".join(f"--{name} {given[name]}" for name in ("steps", "epochs") if given[name] is not None)
        raise TrainingError.InvalidConfig(
            reason=f"{flags} make {updates} update{'s' if updates > 1 else ''}, the run in {context.params['resume']} "
            f"has made {trainer.step}; takes as many or more, or leave the flags out"
        )


def flags_of(context: typer.Context) -> dict[str, Any]:
    """The command's flags as JSON can hold them; what is there on the disk is named in full."""
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in context.params.items()}
    for name in ("model", "data", "init_adapter"):
        if flags.get(name) and Path(flags[name]).exists():
            flags[name] = str(Path(flags[name]).resolve())
    return flags

"""An adapter as a folder of a configuration and one file of tensors: PEFT's and mlx-lm's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...error import CheckpointError
from ...files import write_atomically
from ...formats import safetensors
from ...formats.replacing import replace_together
from .tensors import a_factor, a_rank, invalid

CONFIG = "adapter_config.json"


def save_folder(
    folder: Path,
    config: Mapping[str, Any],
    weights: str,
    tensors: Mapping[str, mx.array],
    metadata: Mapping[str, str] | None = None,
    others: tuple[str, ...] = (),
) -> None:
    """Write ``adapter_config.json`` and the file ``weights``; both are on disk before either replaces an old one.

    A process that is ended in between leaves no new weights beside an old configuration, whose scale would be taken
    for theirs: another configuration than the new one is out of the way first, under a name that ends in ``.old``.
    Raises ``CheckpointError.SaveFailed`` if they cannot be written, and for a folder that holds one of the files
    ``others``: its configuration would be replaced by one of another format.
    """
    if other := next((name for name in others if (folder / name).exists()), None):
        raise CheckpointError.SaveFailed(
            reason=f"adapter {folder}: holds {other}, an adapter of another format; give another folder"
        )
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    try:
        if _holds(folder / CONFIG, text):  # the next save of a run
            with write_atomically(folder / weights) as beside:
                safetensors.save(beside, tensors, metadata)
            return
        with replace_together(folder, (weights, CONFIG), ()) as besides:
            safetensors.save(besides[weights], tensors, metadata)
            besides[CONFIG].write_text(text, encoding="utf-8")
    except (CheckpointError.SaveFailed, OSError) as error:
        if str(error).startswith(f"failed to save: {folder}: "):
            raise
        # It names a file beside the one that was asked for.
        cause = error if isinstance(error, OSError) and error.strerror else error.__cause__
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        reason = f"adapter {folder}: {why}; an adapter that was there is unchanged"
        raise CheckpointError.SaveFailed(reason=reason) from cause


def _holds(file: Path, text: str) -> bool:
    """Whether a file is there and holds this text."""
    try:
        return file.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def check_agreement(path: Path, config: Mapping[str, Any], scale: float) -> None:
    """Raise ``CheckpointError.InvalidFormat`` where a configuration has the fields of both formats and another scale.

    Some programs write both; ``scale`` is what the format in hand says.
    """
    lora, r, alpha = config.get("lora_parameters"), config.get("r"), config.get("lora_alpha")
    if not isinstance(lora, dict) or lora.get("scale") is None or r is None or alpha is None:
        return
    theirs = a_factor(path, lora["scale"], "lora_parameters.scale")
    rank, ours = a_rank(path, r, "r"), a_factor(path, alpha, "lora_alpha")
    peft = ours / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not (math.isclose(theirs, scale, rel_tol=1e-6) and math.isclose(peft, scale, rel_tol=1e-6)):
        said = f"lora_alpha {ours:g} over r {rank} is {peft:g}, lora_parameters.scale is {theirs:g}"
        raise invalid(path, f"{said}: they contradict each other; leave those of one format")


def plain_number(value: float) -> float | int:
    """A whole number as an integer, as other programs write theirs."""
    return int(value) if float(value).is_integer() else value

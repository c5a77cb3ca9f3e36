"""The folder of a run: whether it may be used, whether there is room, and nothing left of it where nothing was made."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..error import CheckpointError
from ..files import missing_folders, remove_empty, save_errors


def check_output(output: Path, overwrite: bool, resume: Path | None) -> None:
    """Raise ``CheckpointError.SaveFailed`` for a folder that cannot be written, or that holds an adapter or a run.

    Makes nothing: what comes before the first step may fail.
    """
    from ..training.state import STATE

    same = resume is not None and resume.resolve() == output.resolve()
    for name, what in ((STATE, "a run"), ("adapter_config.json", "an adapter")):
        if (output / name).exists() and not (overwrite or same):
            how = f"--resume {output} goes on with it" if name == STATE else f"--init-adapter {output} starts from it"
            raise CheckpointError.SaveFailed(
                reason=f"{output} holds {what}; --overwrite replaces it, {how}, --output names another folder"
            )
    missing = missing_folders(output)
    try:
        with save_errors(output):
            output.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=output):
                pass
    finally:
        remove_empty(missing)


def check_space(output: Path, adapter: Any) -> None:
    """Raise ``CheckpointError.SaveFailed`` if the disk has no room for the adapter and the state, beside old ones."""
    # The state holds the weights and two moments.
    needed = (4 + 12) * adapter.num_trainable_parameters() + 2**20
    there = next(each for each in (output, *output.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise CheckpointError.SaveFailed(
            reason=f"{output}: adapter and state need {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; "
            "--output names another place"
        )

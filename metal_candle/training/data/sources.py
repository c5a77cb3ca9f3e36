"""Where training files come from: a file, a directory, or a set that the package carries."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from pathlib import Path

from ...error import DataError
from ...error.expect import PATH, TEXT
from ...error.takes import takes

PACKAGED = ("field-guide",)


@dataclass(frozen=True)
class DataFiles:
    """The file to train on and, where there is one, the file to hold out."""

    train: Path
    valid: Path | None


@takes(name=TEXT)
def packaged_dataset(name: str) -> Path:
    """The folder of a data set that the package carries, with ``train.jsonl`` and ``valid.jsonl``.

    Raises ``DataError.InvalidFile`` for a name the package does not have.
    """
    if name not in PACKAGED:
        raise DataError.InvalidFile(path=name, reason=f"no such packaged data set; there are {_names()}")
    return Path(str(importlib.resources.files("metal_candle"))) / "data" / name


@takes(source=PATH)
def find_data(source: str | Path) -> DataFiles:
    """The files behind ``source``: a JSON Lines file, a directory with ``train.jsonl`` and perhaps
    ``valid.jsonl``, or the name of a packaged set. What exists on disk goes before a packaged name.

    Raises ``DataError.InvalidFile`` if there is nothing of that name, or it cannot be told, or the directory lacks
    ``train.jsonl``.
    """
    if source == "":  # of which Path makes the current folder
        raise DataError.InvalidFile(path="''", reason=f"the name is empty; takes a file, a directory or {_names()}")
    try:
        return _found(source)
    except OSError as error:
        raise DataError.InvalidFile(path=source, reason=f"cannot be read: {error.strerror or error}") from error


def _found(source: str | Path) -> DataFiles:
    path = Path(source)
    if not path.exists():
        if str(source) not in PACKAGED:
            reason = f"no such file or directory, nor a packaged data set ({_names()})"
            raise DataError.InvalidFile(path=path, reason=reason)
        path = packaged_dataset(str(source))
    if not path.is_dir():
        return DataFiles(path, None)
    train, valid = path / "train.jsonl", path / "valid.jsonl"
    if not train.is_file():
        raise DataError.InvalidFile(path=path, reason="the directory has no train.jsonl")
    return DataFiles(train, valid if valid.is_file() else None)


def _names() -> str:
    return ", ".join(PACKAGED)

"""Options that take a path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..error import CheckpointError


def to_read(option: str) -> Callable[[str], Path]:
    """The parser of an option that names what is read. Raises ``CheckpointError.LoadFailed`` where that is empty:
    ``Path("")`` is the current folder."""
    return _parser(option, CheckpointError.LoadFailed)


def to_write(option: str) -> Callable[[str], Path]:
    """The parser of an option that names what is written. Raises ``CheckpointError.SaveFailed`` as ``to_read``."""
    return _parser(option, CheckpointError.SaveFailed)


def _parser(option: str, error: type[CheckpointError]) -> Callable[[str], Path]:
    def path(text: str) -> Path:
        if not text:
            raise error(reason=f"{option} is empty; takes a path")
        return Path(text)

    return path

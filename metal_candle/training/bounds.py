"""Settings of training that have a least value."""

from __future__ import annotations

from ..error import TrainingError


def at_least(op: str, least: int, **values: int) -> None:
    """Raise ``TrainingError.InvalidConfig`` for the first of some numbers that is less."""
    for name, value in values.items():
        if value < least:
            raise TrainingError.InvalidConfig(reason=f"{op}: {name} is {value}; takes at least {least}")

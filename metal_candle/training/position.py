"""``Position``: how far a run has come."""

from __future__ import annotations

from dataclasses import dataclass

from ..error.expect import integer


@dataclass(frozen=True)
class Position:
    """How far a run has come: updates made, the epoch, batches taken from it, the step of the last evaluation."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    evaluated: int = -1

    def __post_init__(self) -> None:
        for name, least in (("step", 0), ("epoch", 0), ("batch", 0), ("evaluated", -1)):
            integer("Position", name, getattr(self, name), least)

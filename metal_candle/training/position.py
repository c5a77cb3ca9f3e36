"""Where a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """Where a run is: updates made, the epoch, the batches taken from it, the update last evaluated after."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    evaluated: int = -1

"""What a run tells as it goes: an update's figures and an evaluation's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepMetrics:
    """What one update tells. ``step`` counts from 1, ``tokens`` those fed in, ``seconds`` the whole step."""

    loss: float
    step: int
    learning_rate: float
    grad_norm: float = 0.0
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class EvalMetrics:
    """The loss on the held-out examples after ``step`` updates: the mean over their trained tokens."""

    loss: float
    step: int
    trained_tokens: int
    seconds: float

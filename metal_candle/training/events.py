"""The metrics that a run reports: one record for each update, one for each evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepMetrics:
    """The metrics of one update; ``step`` counts from 1.

    ``tokens`` are those fed to the model, padding included, ``trained_tokens`` those that the loss is the mean over.
    ``seconds`` is the wall time of the whole step.
    """

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

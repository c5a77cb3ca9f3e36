"""What tests of losses share: their definitions in float64, and the cases that all of them are tried on."""

from __future__ import annotations

from typing import Any

import numpy as np

REDUCTIONS = ("mean", "sum", "none")


def reduced(losses: Any, weights: Any, reduction: str) -> Any:
    """Weighted losses; one of weight 0 does not count whatever it is, and the mean of nothing is 0."""
    weights = np.broadcast_to(np.asarray(1.0 if weights is None else weights, np.float64), losses.shape)
    with np.errstate(invalid="ignore"):
        weighted = np.where(weights != 0, losses * weights, 0)
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    return weighted.sum() / weights.sum() if weights.sum() else np.float64(0)


def log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def nll(inp: Any, target: Any, reduction: str = "mean", ignore_index: int | None = None, mask: Any = None) -> Any:
    return _of_classes(np.asarray(inp, np.float64), target, reduction, ignore_index, mask, 0.0)


def cross_entropy(
    inp: Any,
    target: Any,
    reduction: str = "mean",
    ignore_index: int | None = None,
    mask: Any = None,
    label_smoothing: float = 0.0,
) -> Any:
    given = log_softmax(np.asarray(inp, np.float64))
    return _of_classes(given, target, reduction, ignore_index, mask, label_smoothing)


def _of_classes(
    given: Any, target: Any, reduction: str, ignore_index: int | None, mask: Any, label_smoothing: float
) -> Any:
    weights = np.ones(target.shape) if mask is None else np.broadcast_to(mask, target.shape).astype(np.float64)
    if ignore_index is not None:
        weights = weights * (target != ignore_index)
    at = np.where(weights != 0, target, 0).astype(np.int64)
    losses = -(1 - label_smoothing) * np.take_along_axis(given, at[..., None], -1)[..., 0]
    if label_smoothing:
        losses = losses - label_smoothing * given.mean(-1)
    return reduced(losses, weights, reduction)


def huber(difference: Any, delta: float) -> Any:
    size = np.abs(difference)
    return np.where(size <= delta, difference**2 / 2, delta * (size - delta / 2))

"""The choice of a token by MLX, where the logits are: the definitions are those of ``sampling``."""

from __future__ import annotations

import math
from collections.abc import Iterable

import mlx.core as mx
import numpy as np

from .sampling import Filters

_MOST = float(np.nextafter(np.float32(1), np.float32(0)))


def seen_of(ids: Iterable[int], size: int) -> mx.array:
    """Which of ``size`` tokens were there, boolean ``(size,)``."""
    seen = np.zeros(size, bool)
    seen[[i for i in ids if 0 <= i < size]] = True
    return mx.array(seen)


def penalized(logits: mx.array, seen: mx.array, penalty: float) -> mx.array:
    """``sampling.penalized`` of logits ``(vocabulary,)``, with a mask for the ids."""
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def choose(logits: mx.array, filters: Filters, at: float) -> mx.array:
    """The token, uint32 ``()``, that ``Filters.draw`` draws from float32 logits ``(vocabulary,)`` with a random number
    ``at`` in [0, 1).

    Float32 sums decide between two neighbours otherwise than float64 ones where ``at`` is within their rounding.
    """
    if filters.is_greedy():
        return mx.argmax(logits)
    scaled = (logits - logits.max()) / max(filters.temperature, 1e-30)
    top_p = 1.0 if filters.top_p is None else filters.top_p
    order = None
    if filters.top_k is not None or top_p < 1:
        order = mx.argsort(-scaled)
        scaled = scaled[order]
    weights = mx.exp(scaled)
    if filters.top_k is not None:
        weights = mx.where(mx.arange(weights.size) < max(filters.top_k, 1), weights, 0)
    if top_p < 1:
        weights = mx.where(mx.cumsum(weights, inclusive=False) < top_p * weights.sum(), weights, 0)
    if filters.min_p:
        weights = mx.where(scaled >= math.log(filters.min_p), weights, 0)
    reached = mx.cumsum(weights)
    # Below 1 in float32 too, the product is less than the last sum: the place is one of weight.
    place = (reached <= min(at, _MOST) * reached[-1]).sum()
    place = mx.minimum(place, weights.size - 1)  # of NaN, which the caller reports
    return (place if order is None else order[place]).astype(mx.uint32)


def facts(token: mx.array, logits: mx.array) -> mx.array:
    """The token's logit, its probability among all, and the logarithm of their sum: float32 ``(3,)``."""
    total = mx.logsumexp(logits)
    logit = logits[token]
    return mx.stack([logit, mx.exp(logit - total), total])

"""What the kernels of recurrent nets share: the functions of their gates, and a sequence step by step."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from .elementary import LN_2_HIGH, LN_2_LOW, LOG2_E, ROUND
from .elementary import sigmoid as _sigmoid
from .kernel import on_cpu
from .slices import sliced
from .variant import is_half

# Below this many elements the operations that tanh is made of cost more than they save. Measured, MLX's against ours:
# 18 and 21 ns an element for 8,192 of them, 19 and 7 for 32,768.
SMALL = 16384


def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + exp(-x)), computed as fast as ``kernels.elementary`` can."""
    return _sigmoid.forward(x)[0]


def tanh(x: mx.array) -> mx.array:
    """Hyperbolic tangent; of many float32 on the CPU within a relative error of 5e-7."""
    if x.dtype != mx.float32 or x.size < SMALL or not on_cpu():
        return mx.tanh(x)
    result: mx.array = sliced(_tanh, x)
    return result


def _tanh(x: mx.array) -> mx.array:
    # exp(2x) = (d + t) / (d - t) · p with p = 2**n and d = t·coth(t/2), |t| <= ln(2)/2, here to its term t⁴; so that
    # tanh = (exp(2x) - 1) / (exp(2x) + 1) is one division, whose numerator has no cancellation: it is 2t where n is 0.
    # From 9.02 on the result is 1 in float32.
    x = mx.clip(x, -9.5, 9.5)
    biased = x * (2 * LOG2_E) + ROUND
    n = biased - ROUND
    t = 2 * x - n * LN_2_HIGH - n * LN_2_LOW
    square = mx.square(t)
    d = square * (1 / 6 - square * (1 / 360)) + 2
    power = (biased.view(mx.int32) << 23).view(mx.float32)
    more, less = power + 1, power - 1
    return (t * more + d * less) / (d * more + t * less)


def wide(*arrays: mx.array) -> list[mx.array]:
    """Halves as float32, the others as they are."""
    return [x.astype(mx.float32) if is_half(x) else x for x in arrays]


def by_step(x: mx.array) -> mx.array:
    """``(b, t, …)`` as ``(t, b, …)``, each step in one piece."""
    return mx.contiguous(mx.swapaxes(x, 0, 1))


def states_before(first: mx.array, states: mx.array) -> mx.array:
    """What each step started from: ``first`` ``(b, n)``, then ``states`` ``(b, t, n)`` but the last."""
    return mx.concatenate([first[:, None], states[:, :-1]], axis=1)


def gate_products(weight: mx.array, batch: int) -> Callable[[mx.array], mx.array]:
    """What gives ``h · Wᵀ`` of each gate, ``(gates, b, n)``, for h ``(b, n)``; weight ``(gates, n, n)``."""
    gates, size, _ = weight.shape
    if batch == 1:  # one product has that order already, and costs less than one for each gate
        flat = weight.reshape(gates * size, size).T
        return lambda h: (h @ flat).reshape(gates, 1, size)
    across = mx.swapaxes(weight, 1, 2)
    return lambda h: h @ across

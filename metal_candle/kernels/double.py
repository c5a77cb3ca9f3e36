"""Functions that MLX's CPU back-end computes in float32 even for float64, at full precision.

``mx.exp``, ``mx.sin``, ``mx.cos``, ``mx.erf``, ``mx.sigmoid``, ``mx.softmax`` and ``mx.logsumexp`` of float64 are right
to seven digits only (seen with mlx 0.32.4 on x86-64); ``mx.power``, ``mx.tan`` and the four rules are right to the last
ones. Other dtypes, float32 included, take MLX's functions unchanged.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

# What is missing from e as a float64, relative to it.
E_REST = 1.4456468917292502e-16 / math.e


def exp(x: mx.array) -> mx.array:
    """e to the power of each element; float64 within 1e-15 of the value."""
    if x.dtype != mx.float64:
        return mx.exp(x)
    # e**x with the rounded e is off by x times e's own error, which the second factor takes back.
    return mx.power(mx.array(math.e, mx.float64), x) * (1 + mx.clip(x, -800.0, 800.0) * E_REST)


def sin(x: mx.array) -> mx.array:
    """Sine, in radians; float64 within 3e-16."""
    if x.dtype != mx.float64:
        return mx.sin(x)
    tangent = mx.tan(x * 0.5)
    return 2 * tangent / (1 + mx.square(tangent))


def cos(x: mx.array) -> mx.array:
    """Cosine, in radians; float64 within 3e-16."""
    if x.dtype != mx.float64:
        return mx.cos(x)
    tangent = mx.tan(x * 0.5)
    return (1 - tangent) * (1 + tangent) / (1 + mx.square(tangent))


def erf(x: mx.array) -> mx.array:
    """Error function; float64 within 1e-14 of the value."""
    if x.dtype != mx.float64:
        return mx.erf(x)
    inner, outer = _erf_series()
    size = mx.abs(x)
    near, far = mx.minimum(size, 2.0), mx.clip(size, 2.0, 6.0)
    below = near * _chebyshev(inner, mx.square(near) * 0.5 - 1)
    return mx.sign(x) * mx.where(size > 2, 1 - _chebyshev(outer, far * 0.5 - 2), below)


@cache
def _erf_series() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Chebyshev series of erf(x)/x in x² over 0..4, and of 1 - erf over 2..6; above 6 erf is 1 to the last digit."""
    from numpy.polynomial import chebyshev  # only here, since importing it takes some milliseconds

    def slope(t: Any) -> Any:
        # The nodes of the interpolation lie inside, so that the root is never 0.
        roots = np.sqrt(2 * (t + 1))
        return np.array([math.erf(root) / root for root in roots])

    def tail(t: Any) -> Any:
        return np.array([math.erfc(4 + 2 * place) for place in t])

    inner, outer = chebyshev.chebinterpolate(slope, 18), chebyshev.chebinterpolate(tail, 32)
    return tuple(map(float, inner)), tuple(map(float, outer))


def _chebyshev(series: tuple[float, ...], t: mx.array) -> mx.array:
    """The sum of ``series[k] · T_k(t)`` by Clenshaw's recurrence, for t in -1..1."""
    doubled = 2 * t
    last, before = mx.zeros_like(t), mx.zeros_like(t)
    for coefficient in reversed(series[1:]):
        last, before = doubled * last - before + coefficient, last
    return t * last - before + series[0]


def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + exp(-x)); float64 within 1e-15 of the value."""
    if x.dtype != mx.float64:
        return mx.sigmoid(x)
    # exp(-x) of a large negative x would be infinite, and the gradient through it NaN.
    power = exp(mx.where(x < 0, x, -x))
    return mx.where(x < 0, power, 1.0) / (1 + power)


def softmax(x: mx.array) -> mx.array:
    """exp(x) / sum(exp(x)) over the last dim; halves are summed in float32.

    A row without a finite maximum is NaN, as in ``mx.softmax(precise=True)``.
    """
    if x.dtype != mx.float64:
        return mx.softmax(x, axis=-1, precise=True)
    powers = exp(x - mx.max(x, axis=-1, keepdims=True))
    return powers / mx.sum(powers, axis=-1, keepdims=True)


def logsumexp(x: mx.array, dims: tuple[int, ...]) -> mx.array:
    """log(sum(exp(x))) over ``dims``, removed and not empty: -inf where all elements are, inf where one is."""
    if x.dtype != mx.float64 and x.size:
        return mx.logsumexp(x, axis=dims)
    top = mx.max(x, axis=dims, keepdims=True)
    shift = mx.where(mx.isinf(top), mx.zeros_like(top), top)
    return mx.log(mx.sum(exp(x - shift), axis=dims)) + mx.squeeze(shift, axis=dims)

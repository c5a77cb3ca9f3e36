"""Sums of many elements whose error stays that of a few additions, and what is made of them.

MLX's CPU back-end adds a row up one element after the other: the error grows with the number of elements, and a
float32 sum of ones ends at 2**24. Here such a sum is taken in levels: a dim is cut in ``WIDTH`` runs that are added to
each other, which leaves a dim ``WIDTH`` times shorter, until ``LAST`` elements are left to add one by one.

An element then takes part in at most ``WIDTH`` additions per level and ``LAST`` at the end, so that the error is below
``(WIDTH · levels + LAST) · 2**-24`` of the sum of the sizes: 2e-5 for 2·10⁷ elements, where one after the other has 1.
That is if all roundings go one way; of uniform numbers it is seen to be 5e-7 at most, of 2**24 ones 0 (Higham 1993,
"The accuracy of floating point summation").

It is faster too, since runs are added with the processor's vectors: 2.4 ms to 6.2 for 128 x 49152 by rows, 6.5 to 16
for 2**24 elements; sums over leading dims take some 10 % longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from . import double, elementary
from .kernel import on_cpu
from .variant import is_half

# Measured for 1024 to 2**24 elements: 128 runs are faster by 10 % at most, but of equal numbers, whose roundings all go
# one way, the sum is off by 1.4e-6.
WIDTH = 32
LAST = 64
# Elements of a run of ``cumulative``.
RUN = 128
# Up to this many elements one call of MLX is the faster, by 30 us, and its error below that of 2048 additions.
FEW = 2048


def total(x: mx.array, axis: Sequence[int], keepdims: bool = False) -> mx.array:
    """The sum over the dims of ``axis``; halves are added up in float32 and rounded once.

    MLX's own sum, with its dtype, for few elements, for integers and float64, and on a GPU.
    """
    if not _in_levels(x, axis):
        return mx.sum(x, axis=axis, keepdims=keepdims)
    result = _levels(x.astype(mx.float32), axis)
    return (result if keepdims else mx.squeeze(result, axis=axis)).astype(x.dtype)


def mean(x: mx.array, axis: Sequence[int], keepdims: bool = False) -> mx.array:
    """The mean over the dims of ``axis`` of float32 or float64."""
    if not _in_levels(x, axis):
        return mx.mean(x, axis=axis, keepdims=keepdims)
    return total(x, axis, keepdims) / _count(x, axis)


def variance(x: mx.array, axis: int, keepdims: bool = False) -> mx.array:
    """The unbiased variance over ``axis`` of float32 or float64, from the distances to the mean."""
    if not _in_levels(x, (axis,)):
        return mx.var(x, axis=axis, keepdims=keepdims, ddof=1)
    return total(mx.square(x - mean(x, (axis,), True)), (axis,), keepdims) / (x.shape[axis] - 1)


def norm(x: mx.array) -> mx.array:
    """The square root of the sum of all squares of float32 or float64, rank 0."""
    return mx.sqrt(total(mx.square(x), range(x.ndim)))


def logsumexp(x: mx.array, axis: Sequence[int]) -> mx.array:
    """log(sum(exp(x))) of float32 or float64 over the dims of ``axis``, removed and not empty; see ``double``."""
    if not _in_levels(x, axis):
        return double.logsumexp(x, tuple(axis))
    top = mx.max(x, axis=axis, keepdims=True)
    shift = mx.where(mx.isinf(top), mx.zeros_like(top), top)
    return mx.log(total(elementary.exp.forward(x - shift)[0], axis)) + mx.squeeze(shift, axis=axis)


def cumulative(x: mx.array, axis: int, reverse: bool = False, inclusive: bool = True) -> mx.array:
    """The sum of each element of float32 or float64 and those before it, or behind it, with or without itself."""
    size = x.shape[axis]
    if not _in_levels(x, (axis,)):
        return mx.cumsum(x, axis=axis, reverse=reverse, inclusive=inclusive)
    runs = -(-size // RUN)
    missing = runs * RUN - size
    if missing:
        x = mx.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
    parts = mx.unflatten(x, axis, (runs, RUN))
    inside = mx.cumsum(parts, axis=axis + 1, reverse=reverse, inclusive=inclusive)
    # With the elements themselves, a run's last sum is that of all its elements.
    last = 0 if reverse else RUN - 1
    sums = mx.take(inside, last, axis=axis + 1) if inclusive else mx.sum(parts, axis=axis + 1)
    before = cumulative(sums, axis, reverse, False)
    result = mx.flatten(inside + mx.expand_dims(before, axis + 1), axis, axis + 1)
    return mx.split(result, [size], axis=axis)[0] if missing else result


def _in_levels(x: mx.array, axis: Sequence[int]) -> bool:
    return x.size > FEW and (x.dtype == mx.float32 or is_half(x)) and _count(x, axis) > FEW and on_cpu()


def _count(x: mx.array, axis: Sequence[int]) -> int:
    return math.prod([x.shape[place] for place in axis])


def _levels(x: mx.array, axis: Sequence[int]) -> mx.array:
    while _count(x, axis) > LAST:
        shape = x.shape
        # The first of the longest: the elements behind it lie next to each other.
        x = _shortened(x, max(axis, key=shape.__getitem__))
    return mx.sum(x, axis=axis, keepdims=True)


def _shortened(x: mx.array, axis: int) -> mx.array:
    """``x`` with the same sum over ``axis``, that dim shorter by ``WIDTH``."""
    size = x.shape[axis]
    run = size // WIDTH
    if run <= 1:
        return mx.sum(x, axis=axis, keepdims=True)
    if size % WIDTH == 0:
        return mx.sum(mx.unflatten(x, axis, (WIDTH, run)), axis=axis)
    whole, rest = mx.split(x, [WIDTH * run], axis=axis)
    parts = mx.sum(mx.unflatten(whole, axis, (WIDTH, run)), axis=axis)
    return mx.concatenate([parts, mx.sum(rest, axis=axis, keepdims=True)], axis=axis)

"""Pools over the last two dims, made of slices.

A reduction over the windows as dims of their own is what MLX's CPU back-end is slow at: 27 ms for 8 x 64 x 56 x 56 in
windows of 2 x 2, where slices of the rows and then of the columns take 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import reduce

import mlx.core as mx

from .choice import as_bytes, or_zero
from .kernel import on_cpu
from .windows import PIECE, Sizes, Windows, in_pieces, spatial

# Arrays of the input's size that max pool's gradient is counted to have in work. Measured on one x86-64 core,
# 64 x 64 x 28 x 28 in windows of 2 x 2 and 8 x 64 x 56 x 56 in 3 x 3, stride 2: all at once takes 55 and 64 ms, in
# pieces of half of PIECE 20 and 15, of all of it 28 and 33, of an eighth 27 and 29.
ARRAYS = 2


def _combined(x: mx.array, windows: Windows, of_two: Callable[[mx.array, mx.array], mx.array]) -> mx.array:
    """``of_two`` over the elements of every window, one dim after the other."""
    count = windows.count(x.shape[2:])
    for axis, (n, k, s) in enumerate(zip(count, windows.kernel, windows.stride)):
        after = [slice(None)] * (len(count) - 1 - axis)
        x = reduce(of_two, [x[spatial([slice(i, i + (n - 1) * s + 1, s), *after])] for i in range(k)])
    return x


def max_pool(x: mx.array, windows: Windows) -> mx.array:
    """The largest element of each window, NaN if one is: ``(b, c, *size)`` to ``(b, c, *count)``."""
    return _combined(x, windows, mx.maximum)


def max_pool_vjp(cotangent: mx.array, x: mx.array, largest: mx.array, windows: Windows) -> mx.array:
    """Each window's gradient at the first of its largest elements, in row-major order; at its first NaN, if any."""

    def of_piece(cotangent: mx.array, x: mx.array, largest: mx.array) -> mx.array:
        return _max_pool_vjp(cotangent, x, largest, windows)

    if x.size <= PIECE // ARRAYS or not on_cpu():
        return of_piece(cotangent, x, largest)
    return mx.concatenate(in_pieces(of_piece, ARRAYS * math.prod(x.shape[1:]), cotangent, x, largest))


def _max_pool_vjp(cotangent: mx.array, x: mx.array, largest: mx.array, windows: Windows) -> mx.array:
    wide = _wide(cotangent)

    def pieces() -> Iterator[mx.array]:
        without = mx.ones(largest.shape, mx.uint8)
        for index in windows.elements(largest.shape[2:]):
            # Strided elements are gone through one by one: once, for both comparisons.
            element = mx.contiguous(x[index])
            # NaN equals nothing, itself included.
            found = without & (as_bytes(element == largest) | as_bytes(element != element))
            without = without ^ found
            yield or_zero(found, wide)

    return windows.placed_back(pieces(), x.shape[2:], largest.shape[2:]).astype(x.dtype)


def sum_pool(x: mx.array, windows: Windows) -> mx.array:
    """The sum of each window; halves are added up in float32 and stay so."""
    return _combined(_wide(x), windows, mx.add)


def avg_pool(x: mx.array, windows: Windows) -> mx.array:
    """The mean of each window: ``(b, c, *size)`` to ``(b, c, *count)``."""
    return (sum_pool(x, windows) * _share(windows)).astype(x.dtype)


def avg_pool_vjp(cotangent: mx.array, size: Sizes, windows: Windows) -> mx.array:
    """Each window's gradient, shared equally by its elements."""
    count = cotangent.shape[2:]
    share = _wide(cotangent) * _share(windows)
    pieces = (share for _ in windows.elements(count))
    return windows.placed_back(pieces, size, count).astype(cotangent.dtype)


def _share(windows: Windows) -> float:
    return 1.0 / reduce(lambda a, b: a * b, windows.kernel)


def _wide(x: mx.array) -> mx.array:
    return x.astype(mx.float32) if x.dtype in (mx.float16, mx.bfloat16) else x

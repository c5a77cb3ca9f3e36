"""Pools over the last two dims, made of slices.

A reduction over the windows as dims of their own is what MLX's CPU back-end is slow at: 27 ms for 8 x 64 x 56 x 56 in
windows of 2 x 2, where slices of the rows and then of the columns take 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce

import mlx.core as mx

from .windows import Sizes, Windows, spatial


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
    """Each window's gradient at the first of its largest elements, in row-major order; NaN counts as infinite."""
    wide = _wide(cotangent)
    zero = mx.array(0, wide.dtype)
    # NaN equals nothing, itself included.
    x, largest = _without_nan(x), _without_nan(largest)

    def pieces() -> Iterator[mx.array]:
        without = mx.ones(largest.shape, mx.bool_)
        for index in windows.elements(largest.shape[2:]):
            found = without & (x[index] == largest)
            without = without ^ found
            yield mx.where(found, wide, zero)

    return windows.placed_back(pieces(), x.shape[2:], largest.shape[2:]).astype(x.dtype)


def _without_nan(x: mx.array) -> mx.array:
    return mx.where(mx.isnan(x), mx.array(mx.inf, x.dtype), x)


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

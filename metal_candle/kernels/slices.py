"""Work in slices that fit the processor's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from .matmul import as_rows

# Elements of a slice: 512 KiB of float32. A dozen operations in a row on larger arrays wait for memory:
# measured 22 ns an element on 786432 elements in one piece, 4.0 in slices of this size.
SLICE = 131072


def sliced(function: Callable[..., Any], *arrays: mx.array) -> Any:
    """``function(*arrays)``, element by element, for arrays of one shape; a slice at a time.

    ``function`` gives an array, or a tuple of arrays, of its arguments' shape.
    """
    shape, size = arrays[0].shape, arrays[0].size
    if size <= SLICE * 3 // 2:
        return function(*arrays)
    flat = [array.reshape(-1) for array in arrays]
    parts: list[Any] = []
    for start in range(0, size, SLICE):
        piece = [array[start : start + SLICE] for array in flat]
        parts.append(function(*(_after(piece, parts[-1]) if parts else piece)))
    if isinstance(parts[0], mx.array):
        return mx.concatenate(parts).reshape(shape)
    return tuple(mx.concatenate(list(column)).reshape(shape) for column in zip(*parts))


def by_rows(function: Callable[..., mx.array], x: mx.array, *beside: mx.array) -> mx.array:
    """``function`` of blocks of the rows of x, ``(…, n)``, that fit the cache, and of the same rows ``beside``.

    ``function`` takes and gives matrices; those it gives may have another width. n is not 0.
    """
    parts = in_blocks(function, x, *beside)
    result = parts[0] if len(parts) == 1 else mx.concatenate(parts)
    return result if x.ndim == 2 else result.reshape(*x.shape[:-1], result.shape[-1])


def in_blocks(function: Callable[..., Any], x: mx.array, *beside: mx.array) -> list[Any]:
    """What ``function`` gives, an array or a tuple of them, for each block of rows; see ``by_rows``."""
    rows = [as_rows(array) for array in (x, *beside)]
    count, n = rows[0].shape
    step = max(SLICE // n, 1)
    if count <= step * 3 // 2:
        return [function(*rows)]
    parts: list[Any] = []
    for start in range(0, count, step):
        block = [array[start : start + step] for array in rows]
        parts.append(function(*(_after(block, parts[-1]) if parts else block)))
    return parts


def _after(arrays: list[mx.array], last: Any) -> list[mx.array]:
    """The arrays once ``last`` is there: MLX may otherwise compute each operation for all pieces first."""
    return list(mx.depends(arrays, [last] if isinstance(last, mx.array) else list(last)))

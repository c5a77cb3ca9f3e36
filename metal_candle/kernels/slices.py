"""Work in slices that fit the processor's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

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
        if parts:
            # One after the other: MLX may otherwise compute each operation for all slices first.
            last = parts[-1]
            piece = list(mx.depends(piece, [last] if isinstance(last, mx.array) else list(last)))
        parts.append(function(*piece))
    if isinstance(parts[0], mx.array):
        return mx.concatenate(parts).reshape(shape)
    return tuple(mx.concatenate(list(column)).reshape(shape) for column in zip(*parts))

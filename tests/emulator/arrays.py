"""Arrays of MLX as bytes, and back: bfloat16 and strides included, which NumPy's own way round loses."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

WIDEST = 16
"""Bytes of the widest access of one thread."""

# NumPy has no bfloat16, and MLX makes a wider array of one.
AS_INTEGERS = {mx.bfloat16: (mx.uint16, np.uint16)}
NUMPY = {
    mx.bool_: np.bool_,
    mx.int8: np.int8,
    mx.int16: np.int16,
    mx.int32: np.int32,
    mx.int64: np.int64,
    mx.uint8: np.uint8,
    mx.uint16: np.uint16,
    mx.uint32: np.uint32,
    mx.uint64: np.uint64,
    mx.float16: np.float16,
    mx.float32: np.float32,
    mx.complex64: np.complex64,
}


class Stored(NamedTuple):
    """An array as it lies in memory: its bytes, and the distance between neighbours along each axis in elements.

    ``first`` is the byte at which element 0 begins, of which MLX passes the address: not the lowest one where a stride
    is negative, as those of ``x[::-1]``. ``after`` is how many bytes the data would lie after a multiple of ``WIDEST``
    on a GPU, where every buffer begins at one: a view may begin anywhere in it.
    """

    data: Bytes
    strides: tuple[int, ...]
    first: int = 0
    after: int = 0


def stored(array: mx.array, contiguous: bool) -> Stored:
    """The bytes of an evaluated array: in row-major order, or as they lie if they need not be contiguous."""
    plain = np.array(array.view(AS_INTEGERS[array.dtype][0]) if array.dtype in AS_INTEGERS else array, copy=False)
    size = plain.itemsize
    if contiguous or plain.size == 0:
        whole = np.ascontiguousarray(plain)
        data, below = whole.reshape(-1).view(np.uint8), 0
        if whole.ctypes.data != plain.ctypes.data:  # MLX copies it as well
            return Stored(data, tuple(stride // size for stride in whole.strides))
    else:
        # From the lowest element that the view reaches to the highest.
        reach = [(n - 1) * stride // size for n, stride in zip(plain.shape, plain.strides)]
        below, above = -sum(min(0, r) for r in reach), sum(max(0, r) for r in reach)
        lowest = plain[tuple(slice(-1, None) if stride < 0 else slice(1) for stride in plain.strides)]
        data = np.lib.stride_tricks.as_strided(lowest, (below + 1 + above,), (size,)).view(np.uint8)
    after = (data.ctypes.data - _beginning()) % WIDEST
    return Stored(data, tuple(stride // size for stride in plain.strides), below * size, after)


@cache
def _beginning() -> int:
    """Where a new array of MLX lies from a multiple of ``WIDEST``: on a CPU its size comes before it."""
    new = mx.arange(64)
    mx.eval(new)
    return int(np.array(new, copy=False).ctypes.data) % WIDEST


def loaded(data: Bytes, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """The array of these bytes in row-major order."""
    if dtype in AS_INTEGERS:
        return mx.array(data.view(AS_INTEGERS[dtype][1]).reshape(shape)).view(dtype)
    return mx.array(data.view(NUMPY[dtype]).reshape(shape))

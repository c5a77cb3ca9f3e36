"""Arrays as little-endian bytes in C order, and the sizes that a file claims, checked before they are believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import mlx.core as mx
import numpy as np

Buffer = Union[bytes, bytearray, memoryview]

DIM_LIMIT = 2**31 - 1
"""The longest dim of an MLX array, whose sizes have 32 bits."""

# The most dims of a NumPy array before NumPy 2; MLX has no bound.
_NUMPY_RANK = 32

# What NumPy calls the bytes; it has no bfloat16.
_NUMPY = {
    mx.bool_: "|u1",
    mx.uint8: "|u1",
    mx.int8: "|i1",
    mx.uint16: "<u2",
    mx.int16: "<i2",
    mx.uint32: "<u4",
    mx.int32: "<i4",
    mx.uint64: "<u8",
    mx.int64: "<i8",
    mx.float16: "<f2",
    mx.bfloat16: "<u2",
    mx.float32: "<f4",
    mx.float64: "<f8",
}


def numpy_dtype(dtype: mx.Dtype) -> np.dtype[np.generic]:
    """NumPy's dtype for the bytes of an MLX one; bfloat16's are uint16 there."""
    return np.dtype(_NUMPY[dtype])


def element_count(shape: Sequence[int], limit: int) -> int:
    """The product of the sizes, or ``limit + 1`` for any that is greater: a claim of many huge sizes costs nothing."""
    if 0 in shape:
        return 0
    count = 1
    for size in shape:
        count *= size
        if count > limit:
            return limit + 1
    return count


def from_bytes(data: Buffer, dtype: mx.Dtype, shape: Sequence[int]) -> mx.array:
    """The array of these bytes, copied. ``data`` has exactly the bytes that dtype and shape take."""
    # float64 exists on the CPU only; for the others the place does not matter, memory is MLX's.
    with mx.stream(mx.cpu):
        if 0 in shape:  # of which NumPy bounds the other sizes
            return mx.zeros(tuple(shape), dtype)
        values = np.frombuffer(data, numpy_dtype(dtype))
        if not values.flags.aligned:
            values = values.copy()
        # Shaped before MLX has it, where every reshape is one more thing to evaluate.
        shaped = len(shape) <= _NUMPY_RANK
        if shaped:
            values = values.reshape(tuple(shape))
        if dtype == mx.float64:
            array = mx.array(values, mx.float64)
        elif dtype == mx.bfloat16:
            array = mx.array(values).view(mx.bfloat16)
        elif dtype == mx.bool_:
            array = mx.array(np.asarray(values != 0))
        else:
            array = mx.array(values)
        return array if shaped else array.reshape(tuple(shape))


def to_bytes(array: mx.array) -> memoryview:
    """The array's elements as little-endian bytes in C order."""
    with mx.stream(mx.cpu):
        bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
        values = np.ascontiguousarray(np.array(bits.reshape(-1)))
    return values.astype(values.dtype.newbyteorder("<"), copy=False).view(np.uint8).data

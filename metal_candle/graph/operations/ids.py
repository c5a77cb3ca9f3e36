"""Ids, the integers that name entries of a dim: which dtypes they have, and the look whether MLX may use them.

MLX checks no bounds: an id outside a dim reads or writes foreign memory. Every operation that takes ids
passes them through ``guard``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx
import numpy as np

from ...dtype import DType
from ...error import InvalidIndexError, UnsupportedDTypeForOpError
from ..operation import Meta

TAKES = (DType.U8, DType.U32, DType.I32, DType.I64)
# candle's CPU takes I16 too where ids name places to write.
WRITES = (DType.U8, DType.I16, DType.U32, DType.I32, DType.I64)


def expect_ids(op: str, ids: Meta, dtypes: Sequence[DType] = TAKES) -> None:
    """Raise ``UnsupportedDTypeForOpError`` unless ``ids`` has one of ``dtypes``."""
    if ids.dtype not in dtypes:
        names = [str(dtype) for dtype in dtypes]
        raise UnsupportedDTypeForOpError(op, ids.dtype, f"ids of {', '.join(names[:-1])} or {names[-1]}")


_known_below: ContextVar[float] = ContextVar("known_below", default=float("inf"))


@contextmanager
def known_below(size: int) -> Iterator[None]:
    """Inside, every id is one of the first ``size``: nobody waits for its value to look.

    For ids that were computed so and are not known yet, as a token that was chosen on the device.
    """
    token = _known_below.set(size)
    try:
        yield
    finally:
        _known_below.reset(token)


def are_known(size: int) -> bool:
    """Whether it is known that every id is one of the first ``size``."""
    return _known_below.get() <= size


def guard(op: str, ids: mx.array, size: int) -> tuple[mx.array, mx.array | None]:
    """Ids that MLX may use in a dim of ``size``, and a mask of those that name nothing (``None``: all name something).

    The ids dtype's largest value names nothing, as in candle: a row of zeros where ids are read, nothing
    written where they are written. Any other id outside raises ``InvalidIndexError``. Inside ``mx.compile``,
    where there are no values to look at, it names nothing either. What names nothing has become id 0, which a
    dim of size 0 does not have: callers treat that one apart.
    """
    if are_known(size):
        return ids, None
    top = mx.iinfo(ids.dtype).max
    try:
        values = np.array(ids)
    except ValueError:
        wide = ids.astype(mx.int64)
        nothing = (wide < 0) | (wide >= size) | (wide == top)
    else:
        if not values.size or (values.min() >= 0 and values.max() < min(size, top)):
            return ids, None
        wrong = values[((values < 0) | (values >= size)) & (values != top)]
        if wrong.size:
            raise InvalidIndexError(op, int(wrong.flat[0]), size)
        nothing = ids == top
    return mx.where(nothing, mx.array(0, ids.dtype), ids), nothing


def blank(values: mx.array, nothing: mx.array | None, dim: int = 0, add: bool = False) -> mx.array:
    """``values`` with zeros where ``nothing`` holds, which spans the dims from ``dim`` on.

    Zeros to ``add`` are negative ones for floats: they leave -0.0 as it is.
    """
    if nothing is None:
        return values
    after = values.ndim - dim - nothing.ndim
    zero = mx.array(-0.0 if add and mx.issubdtype(values.dtype, mx.floating) else 0, values.dtype)
    return mx.where(nothing.reshape(nothing.shape + (1,) * after), zero, values)


def take(x: mx.array, ids: mx.array, nothing: mx.array | None, dim: int) -> mx.array:
    """Guarded ids' entries of a dim, whose place their dims take."""
    if x.shape[dim] == 0:
        return mx.zeros((*x.shape[:dim], *ids.shape, *x.shape[dim + 1 :]), x.dtype)
    return blank(mx.take(x, ids, axis=dim), nothing, dim)


def take_along(x: mx.array, ids: mx.array, nothing: mx.array | None, dim: int) -> mx.array:
    """For each guarded id, the element of ``x`` at its own place but for ``dim``, where the id says."""
    if x.shape[dim] == 0:
        return mx.zeros(ids.shape, x.dtype)
    index = tuple(slice(None) if i == dim else slice(0, size) for i, size in enumerate(ids.shape))
    return blank(mx.take_along_axis(x[index], ids, axis=dim), nothing)


# What sums are kept in. MLX's GPU has no atomic additions of 8 and 16 bits but slow ones, and sums of halves lose
# what is small; integers wrap alike in either.
_SUMS = {mx.bfloat16: mx.float32, mx.float16: mx.float32, mx.uint8: mx.uint32, mx.int16: mx.int32}


def add_at(x: mx.array, index: tuple[slice | mx.array, ...], values: mx.array) -> mx.array:
    """``x`` with ``values`` added at ``index``; places named several times get the sum, halves in float32.

    On a GPU the order of such a sum, and so its rounding, is not fixed; integers do not depend on it.
    """
    if not values.size or not x.size:
        return x
    kind = _SUMS.get(x.dtype, x.dtype)
    if kind == mx.int64:
        # Metal cannot scatter 8 bytes; memory is shared.
        with mx.stream(mx.cpu):
            return x.at[index].add(values)
    return x.astype(kind).at[index].add(values.astype(kind)).astype(x.dtype)


def along(dim: int, ids: mx.array) -> tuple[slice | mx.array, ...]:
    """The index of ``ids`` in ``dim``."""
    return (*[slice(None)] * dim, ids)


def add_along(x: mx.array, ids: mx.array, values: mx.array, dim: int) -> mx.array:
    """``x`` with each of ``values`` added at its own place but for ``dim``, where its guarded id says."""
    flat = (flat_places(ids, x.shape, dim).reshape(-1),)
    return add_at(x.reshape(-1), flat, values.reshape(-1)).reshape(x.shape)


def flat_places(ids: mx.array, shape: Sequence[int], dim: int) -> mx.array:
    """Where, among the elements of ``shape`` in row-major order, each guarded id points."""
    strides = [1] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    kind = mx.int32 if strides[0] * shape[0] < 2**31 else mx.int64
    places = ids.astype(kind) * strides[dim]
    for axis, size in enumerate(ids.shape):
        if axis != dim:
            steps = mx.arange(size, dtype=kind) * strides[axis]
            places = places + steps.reshape((-1,) + (1,) * (ids.ndim - axis - 1))
    return places

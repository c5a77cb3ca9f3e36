"""Records that pick elements by index or by condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...dtype import DType
from ...error import (
    DTypeMismatchError,
    InvalidIndexError,
    ShapeMismatchBinaryOpError,
    UnsupportedDTypeForOpError,
)
from ...shape import DimLike, Shape, expect_rank, resolve_dim
from ..operation import Gradients, Meta, Operation, Sample

IDS = (DType.U8, DType.U32, DType.I32, DType.I64)


def _expect_ids(op: str, ids: Meta) -> None:
    if ids.dtype not in IDS:
        raise UnsupportedDTypeForOpError(op, ids.dtype, "ids of u8, u32, i32 or i64")


def _take(op: str, x: mx.array, ids: mx.array, dim: int, take: Callable[[mx.array, mx.array], mx.array]) -> mx.array:
    """``take(x, ids)`` with ids that MLX may read: outside the dim it would read foreign memory.

    The ids dtype's largest value stands for zeros, as in candle; any other id outside raises
    ``InvalidIndexError``, or gives zeros inside ``mx.compile``, where there are no values to look at.
    """
    size, zeros = x.shape[dim], mx.iinfo(ids.dtype).max
    try:
        values = np.array(ids)
    except ValueError:
        outside = (ids < 0) | (ids >= size)
    else:
        wrong = values[((values < 0) | (values >= size)) & (values != zeros)]
        if wrong.size:
            raise InvalidIndexError(op, int(wrong.flat[0]), size)
        if zeros < size or not (values == zeros).any():
            return take(x, ids)
        outside = ids == zeros
    if size == 0:
        x = mx.zeros((*x.shape[:dim], 1, *x.shape[dim + 1 :]), x.dtype)
    taken = take(x, mx.where(outside, mx.array(0, ids.dtype), ids))
    while outside.ndim < taken.ndim:
        outside = outside[..., None]
    if op == "index_select":
        outside = mx.moveaxis(outside, 0, dim)
    return mx.where(outside, mx.array(0, taken.dtype), taken)


class IndexSelect(Operation):
    """The entries of a dim that a list of ids names, in their order.

    An id outside the dim raises ``InvalidIndexError`` when the node is evaluated; the largest value of the
    ids' dtype gives zeros.
    """

    arity = 2
    candle = "Tensor::index_select<D: Dim>(&self, indexes: &Tensor, dim: D) -> Result<Tensor>"
    methods = ("index_select",)
    dim: int

    @classmethod
    def bind(cls, x: Meta, indexes: Meta, dim: DimLike) -> Operation:
        return cls(resolve_dim(dim, x.shape, "index_select"))

    def infer(self, x: Meta, indexes: Meta) -> Meta:
        _expect_ids("index_select", indexes)
        expect_rank(indexes.shape, 1, "index_select: indexes")
        return Meta(Shape((*x.shape[: self.dim], indexes.shape[0], *x.shape[self.dim + 1 :])), x.dtype)

    def lower(self, x: mx.array, ids: mx.array) -> mx.array:
        return _take("index_select", x, ids, self.dim, lambda x, ids: mx.take(x, ids, axis=self.dim))


class Embedding(Operation):
    """Rows of a table ``(v, h)`` for ids of any shape: ``(…)`` to ``(…, h)``."""

    arity = 2
    candle = "Tensor::embedding(&self, ids: &Tensor) -> Result<Tensor>"
    methods = ("embedding",)

    def infer(self, table: Meta, ids: Meta) -> Meta:
        _expect_ids("embedding", ids)
        expect_rank(table.shape, 2, "embedding")
        return Meta(Shape((*ids.shape, table.shape[1])), table.dtype)

    def lower(self, table: mx.array, ids: mx.array) -> mx.array:
        return _take("embedding", table, ids, 0, lambda table, ids: mx.take(table, ids, axis=0))


class Gather(Operation):
    """For each place of ``indexes``, the element of the tensor whose dim ``dim`` it names."""

    arity = 2
    candle = "Tensor::gather<D: Dim>(&self, indexes: &Tensor, dim: D) -> Result<Tensor>"
    methods = ("gather",)
    dim: int

    @classmethod
    def bind(cls, x: Meta, indexes: Meta, dim: DimLike) -> Operation:
        return cls(resolve_dim(dim, x.shape, "gather"))

    def infer(self, x: Meta, indexes: Meta) -> Meta:
        _expect_ids("gather", indexes)
        if len(x.shape) != len(indexes.shape) or any(
            b > a for i, (a, b) in enumerate(zip(x.shape, indexes.shape)) if i != self.dim
        ):
            takes = f"indexes no larger than the tensor but in dim {self.dim}"
            raise ShapeMismatchBinaryOpError("gather", x.shape, indexes.shape, takes)
        return Meta(indexes.shape, x.dtype)

    def lower(self, x: mx.array, ids: mx.array) -> mx.array:
        index = tuple(slice(None) if i == self.dim else slice(0, size) for i, size in enumerate(ids.shape))
        return _take("gather", x[index], ids, self.dim, lambda x, ids: mx.take_along_axis(x, ids, axis=self.dim))


class WhereCond(Operation):
    """``on_true`` where the integer condition is not 0, else ``on_false``; three equal shapes."""

    arity = 3
    candle = "Tensor::where_cond(&self, on_true: &Tensor, on_false: &Tensor) -> Result<Tensor>"
    methods = ("where_cond",)

    def infer(self, condition: Meta, on_true: Meta, on_false: Meta) -> Meta:
        if condition.dtype.is_float_:
            raise UnsupportedDTypeForOpError("where_cond", condition.dtype, "an integer condition")
        if on_true.dtype is not on_false.dtype:
            raise DTypeMismatchError("where_cond", on_true.dtype, on_false.dtype)
        for other in (on_true, on_false):
            if other.shape != condition.shape:
                raise ShapeMismatchBinaryOpError("where_cond", condition.shape, other.shape, "three equal shapes")
        return on_true

    def lower(self, condition: mx.array, on_true: mx.array, on_false: mx.array) -> mx.array:
        return mx.where(condition != 0, on_true, on_false)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        zero, chosen = mx.array(0, cotangent.dtype), inputs[0] != 0
        return None, mx.where(chosen, cotangent, zero), mx.where(chosen, zero, cotangent)


class Slice(Operation):
    """Python's slices of the leading dims, each with start, stop and step already resolved."""

    slices: tuple[tuple[int, int, int], ...]
    samples = (Sample(((5, 7),), (((0, 5, 2), (1, 6, 1)),)), Sample(((5, 7),), (((4, -1, -1),),)))

    def infer(self, x: Meta) -> Meta:
        sizes = [len(range(*bounds)) for bounds in self.slices]
        return Meta(Shape((*sizes, *x.shape[len(sizes) :])), x.dtype)

    def _index(self, shape: Sequence[int]) -> tuple[slice, ...]:
        # A stop below 0 of a backward slice means "past the first", which Python writes as None.
        return tuple(slice(a, None if b < 0 else b, c) for a, b, c in self.slices)

    def lower(self, x: mx.array) -> mx.array:
        return x[self._index(x.shape)]

    @staticmethod
    def numpy(x: Any, slices: tuple[tuple[int, int, int], ...]) -> Any:
        return x[tuple(slice(a, None if b < 0 else b, c) for a, b, c in slices)]

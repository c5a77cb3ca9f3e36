"""Records that pick elements by ids or by condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import mlx.core as mx

from ...error import DTypeMismatchError, ShapeMismatchBinaryOpError, UnsupportedDTypeForOpError
from ...shape import DimLike, Shape, resolve_dim
from ..operation import Gradients, Meta, Metas, Operation
from ..work import Work, elements, size_in_bytes
from .ids import add_along, add_at, along, blank, expect_ids, guard, take, take_along


class _Picks(Operation, abstract=True):
    """Family: rows of the first input, picked by the ids of the second; the gradient adds them up again."""

    arity = 2
    work: ClassVar[Work] = "move"

    def traffic(self, inputs: Sequence[Metas], output: Metas) -> int:
        # Of the tensor what is picked is read, not the rest.
        return 2 * size_in_bytes(output) + size_in_bytes(inputs[1])

    def vjp_steps(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> tuple[Work, int]:
        return "select", elements(output)

    def vjp_flops(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> int:
        return elements(output)


class IndexSelect(_Picks):
    """The entries of a dim that a list of ids names, in their order.

    Ids are U8, U32, I32 or I64. An id outside the dim raises ``InvalidIndexError``, eager at the call and lazy
    when evaluated; the largest value of the ids' dtype gives zeros. The gradient adds up over repeated ids, of
    halves in float32.
    """

    candle = "Tensor::index_select<D: Dim>(&self, indexes: &Tensor, dim: D) -> Result<Tensor>"
    methods = ("index_select",)
    dim: int

    @classmethod
    def bind(cls, x: Meta, indexes: Meta, dim: DimLike) -> Operation:
        return cls(resolve_dim(dim, x.shape, "index_select"))

    def infer(self, x: Meta, indexes: Meta) -> Meta:
        expect_ids("index_select", indexes)
        if len(indexes.shape) != 1:
            raise ShapeMismatchBinaryOpError("index_select", x.shape, indexes.shape, "1-D indexes")
        return Meta(Shape((*x.shape[: self.dim], indexes.shape[0], *x.shape[self.dim + 1 :])), x.dtype)

    def lower(self, x: mx.array, ids: mx.array) -> mx.array:
        return take(x, *guard("index_select", ids, x.shape[self.dim]), self.dim)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        ids, nothing = guard("index_select", inputs[1], inputs[0].shape[self.dim])
        values = blank(cotangent, nothing, self.dim)
        return add_at(mx.zeros_like(inputs[0]), along(self.dim, ids), values), None


class Embedding(_Picks):
    """Rows of a table ``(v, h)`` for ids of any shape: ``(…)`` to ``(…, h)``.

    candle takes 1-D ids only. Ids are as in ``index_select``.
    """

    candle = "Tensor::embedding(&self, ids: &Tensor) -> Result<Tensor>"
    methods = ("embedding",)

    def infer(self, table: Meta, ids: Meta) -> Meta:
        expect_ids("embedding", ids)
        if len(table.shape) != 2:
            raise ShapeMismatchBinaryOpError("embedding", table.shape, ids.shape, "a table (v, h)")
        return Meta(Shape((*ids.shape, table.shape[1])), table.dtype)

    def lower(self, table: mx.array, ids: mx.array) -> mx.array:
        return take(table, *guard("embedding", ids, table.shape[0]), 0)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        ids, nothing = guard("embedding", inputs[1], inputs[0].shape[0])
        return add_at(mx.zeros_like(inputs[0]), (ids,), blank(cotangent, nothing)), None


class Gather(_Picks):
    """For each place of ``indexes``, the element of the tensor whose dim ``dim`` it names.

    Ids are as in ``index_select``; the other dims of ``indexes`` may be shorter than the tensor's.
    """

    candle = "Tensor::gather<D: Dim>(&self, indexes: &Tensor, dim: D) -> Result<Tensor>"
    methods = ("gather",)
    work = "select"
    dim: int

    @classmethod
    def bind(cls, x: Meta, indexes: Meta, dim: DimLike) -> Operation:
        return cls(resolve_dim(dim, x.shape, "gather"))

    def infer(self, x: Meta, indexes: Meta) -> Meta:
        expect_ids("gather", indexes)
        if len(x.shape) != len(indexes.shape) or any(
            b > a for i, (a, b) in enumerate(zip(x.shape, indexes.shape)) if i != self.dim
        ):
            takes = f"indexes no larger than the tensor but in dim {self.dim}"
            raise ShapeMismatchBinaryOpError("gather", x.shape, indexes.shape, takes)
        return Meta(indexes.shape, x.dtype)

    def vjp_steps(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> tuple[Work, int]:
        return "scatter", elements(output)

    def lower(self, x: mx.array, ids: mx.array) -> mx.array:
        return take_along(x, *guard("gather", ids, x.shape[self.dim]), self.dim)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        ids, nothing = guard("gather", inputs[1], inputs[0].shape[self.dim])
        return add_along(mx.zeros_like(inputs[0]), ids, blank(cotangent, nothing), self.dim), None


class WhereCond(Operation):
    """``on_true`` where the integer condition is not 0, else ``on_false``; three equal shapes."""

    arity = 3
    candle = "Tensor::where_cond(&self, on_true: &Tensor, on_false: &Tensor) -> Result<Tensor>"
    methods = ("where_cond",)
    work = "select"

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

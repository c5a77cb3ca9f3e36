"""Records that write or add elements at places that ids name. ``self`` is not changed: the result is new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from ...error import DTypeMismatchError, ShapeMismatchBinaryOpError, UnexpectedNumberOfDimsError
from ...shape import DimLike, resolve_dim
from ..operation import Gradients, Meta, Metas, Operation, Sample
from ..work import Work, elements
from .ids import WRITES, add_along, add_at, along, blank, expect_ids, flat_places, guard, take, take_along


class _Scatters(Operation, abstract=True):
    """Family: indexes and a source of one shape, which is the tensor's but for one dim."""

    arity = 3
    # Several ids for one place, and places without one.
    samples = (
        Sample(((3, 5), (3, 7), (3, 7)), (1,), ids=((1, 4),)),
        Sample(((4, 2, 3), (5, 2, 3), (5, 2, 3)), (0,), ids=((1, 4),)),
        Sample(((3, 2), (0, 2), (0, 2)), (0,), ids=((1, 3),)),
        Sample(((0, 2), (0, 2), (0, 2)), (0,), ids=((1, 1),)),
    )
    work: ClassVar[Work] = "scatter"
    dim: int

    @classmethod
    def bind(cls, x: Meta, indexes: Meta, source: Meta, dim: DimLike) -> Operation:
        return cls(resolve_dim(dim, x.shape, cls.key))

    def infer(self, x: Meta, indexes: Meta, source: Meta) -> Meta:
        expect_ids(self.key, indexes, WRITES)
        if x.dtype is not source.dtype:
            raise DTypeMismatchError(self.key, x.dtype, source.dtype)
        expect_like(f"{self.key} (self, src)", x, source, self.dim)
        if indexes.shape != source.shape:
            raise ShapeMismatchBinaryOpError(
                f"{self.key} (indexes, src)", indexes.shape, source.shape, "an index for each element of the source"
            )
        return x

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.work, elements(inputs[2])

    def vjp_steps(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> tuple[Work, int]:
        return "select", elements(inputs[2])

    def vjp_flops(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> int:
        return 0


def expect_like(op: str, x: Meta, source: Meta, dim: int) -> None:
    """Raise ``ShapeMismatchBinaryOpError`` unless ``source`` has the tensor's sizes but in ``dim``."""
    if len(x.shape) != len(source.shape) or any(
        a != b for i, (a, b) in enumerate(zip(x.shape, source.shape)) if i != dim
    ):
        raise ShapeMismatchBinaryOpError(op, x.shape, source.shape, f"a source of the tensor's shape but in dim {dim}")


class Scatter(_Scatters):
    """The tensor with the source's elements written where ``indexes`` says along ``dim``.

    Ids are U8, I16, U32, I32 or I64. Of several writes to one place the last along ``dim`` wins, on every
    device: the winners are found first, in one pass over the ids and an int32 for each element of the tensor.
    The ids dtype's largest value is skipped; any other id outside raises ``InvalidIndexError``, eager at the
    call and lazy when evaluated. The gradient of the tensor is 0 where it was overwritten, that of the source is
    0 but for the winners. (candle 0.11 gives the tensor the whole gradient, which is ``scatter_add``'s.)
    """

    candle = "Tensor::scatter<D: Dim>(&self, indexes: &Self, source: &Self, dim: D) -> Result<Self>"
    methods = ("scatter",)
    flops_per_element = 0

    def lower(self, x: mx.array, ids: mx.array, source: mx.array) -> mx.array:
        ids, nothing = guard("scatter", ids, x.shape[self.dim])
        if not x.size or not source.size:
            return x
        last = self._last(ids, nothing, x.shape)
        written = mx.take_along_axis(source, mx.maximum(last - 1, 0), axis=self.dim)
        return mx.where(last > 0, written, x)

    def _order(self, ids: mx.array) -> mx.array:
        """Of each element of the source its place along the dim, from 1."""
        order = mx.arange(1, ids.shape[self.dim] + 1, dtype=mx.int32)
        return mx.broadcast_to(order.reshape((-1,) + (1,) * (ids.ndim - self.dim - 1)), ids.shape)

    def _last(self, ids: mx.array, nothing: mx.array | None, shape: Sequence[int]) -> mx.array:
        """For each element of the tensor the place, from 1, of the last that writes to it; 0 if none does."""
        order = blank(self._order(ids), nothing).reshape(-1)
        places = flat_places(ids, shape, self.dim).reshape(-1)
        return mx.zeros(int(np.prod(shape)), mx.int32).at[places].maximum(order).reshape(shape)

    @staticmethod
    def numpy(x: Any, ids: Any, source: Any, dim: int) -> Any:
        result = x.copy()
        for place in np.ndindex(*ids.shape):
            target = (*place[:dim], ids[place], *place[dim + 1 :])
            result[target] = source[place]
        return result

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        x, ids, source = inputs
        if not x.size or not source.size:
            return cotangent, None, mx.zeros_like(source)
        ids, nothing = guard("scatter", ids, x.shape[self.dim])
        last = self._last(ids, nothing, x.shape)
        won = mx.take_along_axis(last, ids, axis=self.dim) == self._order(ids)
        zero = mx.array(0, cotangent.dtype)
        written = mx.where(won, mx.take_along_axis(cotangent, ids, axis=self.dim), zero)
        return mx.where(last > 0, zero, cotangent), None, written


class ScatterAdd(_Scatters):
    """The tensor with the source's elements added where ``indexes`` says along ``dim``.

    Ids are as in ``scatter``. What goes to one place adds up, halves in float32; on a GPU the order of such a
    sum is not fixed. The gradient of the tensor is the whole one. (candle 0.11 masks it, which is
    ``scatter``'s.)
    """

    candle = "Tensor::scatter_add<D: Dim>(&self, indexes: &Self, source: &Self, dim: D) -> Result<Self>"
    methods = ("scatter_add",)

    def lower(self, x: mx.array, ids: mx.array, source: mx.array) -> mx.array:
        ids, nothing = guard("scatter_add", ids, x.shape[self.dim])
        return add_along(x, ids, blank(source, nothing, add=True), self.dim) if x.size else x

    @staticmethod
    def numpy(x: Any, ids: Any, source: Any, dim: int) -> Any:
        result = x.copy()
        for place in np.ndindex(*ids.shape):
            target = (*place[:dim], ids[place], *place[dim + 1 :])
            result[target] += source[place]
        return result

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        ids, nothing = guard("scatter_add", inputs[1], inputs[0].shape[self.dim])
        return cotangent, None, take_along(cotangent, ids, nothing, self.dim)


class IndexAdd(Operation):
    """The tensor with each entry of the source's dim added to the entry of its own that a 1-D id names.

    Ids are as in ``scatter``, one for each entry; sums as in ``scatter_add``.
    """

    arity = 3
    candle = "Tensor::index_add<D: Dim>(&self, indexes: &Self, source: &Self, dim: D) -> Result<Self>"
    methods = ("index_add",)
    samples = (
        Sample(((4, 3), (6,), (6, 3)), (0,), ids=((1, 3),)),
        Sample(((2, 3, 4), (5,), (2, 5, 4)), (1,), ids=((1, 3),)),
        Sample(((2, 3), (0,), (2, 0)), (1,), ids=((1, 3),)),
    )
    work = "scatter"
    dim: int

    @classmethod
    def bind(cls, x: Meta, indexes: Meta, source: Meta, dim: DimLike) -> Operation:
        return cls(resolve_dim(dim, x.shape, "index_add"))

    def infer(self, x: Meta, indexes: Meta, source: Meta) -> Meta:
        expect_ids("index_add", indexes, WRITES)
        if x.dtype is not source.dtype:
            raise DTypeMismatchError("index_add", x.dtype, source.dtype)
        expect_like("index_add (self, src)", x, source, self.dim)
        if len(indexes.shape) != 1:
            raise UnexpectedNumberOfDimsError("index_add: indexes", 1, indexes.shape)
        if indexes.shape[0] != source.shape[self.dim]:
            takes = f"an index for each entry of the source's dim {self.dim}"
            raise ShapeMismatchBinaryOpError("index_add (indexes, src)", indexes.shape, source.shape, takes)
        return x

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        # Whole rows, several elements for an id.
        return "select", elements(inputs[2])

    def vjp_flops(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> int:
        return 0

    def lower(self, x: mx.array, ids: mx.array, source: mx.array) -> mx.array:
        ids, nothing = guard("index_add", ids, x.shape[self.dim])
        return add_at(x, along(self.dim, ids), blank(source, nothing, self.dim, add=True))

    @staticmethod
    def numpy(x: Any, ids: Any, source: Any, dim: int) -> Any:
        result = x.copy()
        np.add.at(result, (*[slice(None)] * dim, ids), source)
        return result

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        ids, nothing = guard("index_add", inputs[1], inputs[0].shape[self.dim])
        return cotangent, None, take(cotangent, ids, nothing, self.dim)

"""Records that look at the same elements in another shape or order."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import BroadcastIncompatibleShapesError, ShapeMismatchError, UnexpectedNumberOfDimsError
from ...layout import Layout
from ...shape import (
    DimLike,
    DimsLike,
    Shape,
    ShapeLike,
    fill_hole,
    resolve_dim,
    resolve_dims,
    resolve_insertion,
)
from ..operation import Gradients, Meta, Operation, Sample
from .binary import reduce_to


class Reshape(Operation):
    """The elements in another shape; one size may be the hole ``-1`` (candle's ``()``).

    Raises ``ShapeMismatchError`` where the counts differ, or the hole cannot be filled: the other sizes do not
    divide the count, or one of them is 0.
    """

    candle = "Tensor::reshape<S: ShapeWithOneHole>(&self, s: S) -> Result<Tensor>"
    methods = ("reshape",)
    samples = (Sample(((5, 6),), ((3, 10),)), Sample(((0, 3),), ((3, 0),)), Sample(((),), ((1, 1),)))
    is_view = True
    shape: Shape

    @classmethod
    def bind(cls, x: Meta, shape: ShapeLike) -> Operation:
        return cls(fill_hole(shape, x.shape.elem_count(), "reshape"))

    def infer(self, x: Meta) -> Meta:
        if prod(self.shape) != prod(x.shape):
            raise ShapeMismatchError(f"reshape: {x.shape.elem_count()} elements do not fit shape {tuple(self.shape)}")
        return Meta(self.shape, x.dtype)

    def relayout(self, layout: Layout) -> Layout | None:
        return layout.reshaped(self.shape)

    def lower(self, x: mx.array) -> mx.array:
        return mx.reshape(x, self.shape)

    @staticmethod
    def numpy(x: Any, shape: Shape) -> Any:
        return x.reshape(shape)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent.reshape(inputs[0].shape),)


class Permute(Operation):
    """The dims in another order.

    Raises ``DuplicateDimIndexError``, ``DimOutOfRangeError``, and ``ShapeMismatchError`` if one is left out.
    """

    candle = "Tensor::permute<D: Dims>(&self, dims: D) -> Result<Tensor>"
    methods = ("permute",)
    samples = (Sample(((2, 3, 4),), ((2, 0, 1),)), Sample(((5, 7),), ((1, 0),)))
    is_view = True
    dims: tuple[int, ...]

    @classmethod
    def bind(cls, x: Meta, dims: DimsLike) -> Operation:
        order = resolve_dims(dims, x.shape, "permute")
        if len(order) != len(x.shape):
            raise ShapeMismatchError(f"permute: got dims {order} for shape {tuple(x.shape)}; takes every dim once")
        return cls(order)

    def infer(self, x: Meta) -> Meta:
        return Meta(Shape(x.shape[i] for i in self.dims), x.dtype)

    def relayout(self, layout: Layout) -> Layout:
        return layout.permute(self.dims)

    def lower(self, x: mx.array) -> mx.array:
        return mx.transpose(x, self.dims)

    @staticmethod
    def numpy(x: Any, dims: tuple[int, ...]) -> Any:
        return np.transpose(x, dims)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (mx.transpose(cotangent, [self.dims.index(i) for i in range(len(self.dims))]),)


class Transpose(Operation):
    """Two dims swapped."""

    candle = "Tensor::transpose<D1: Dim, D2: Dim>(&self, dim1: D1, dim2: D2) -> Result<Tensor>"
    methods = ("transpose",)
    samples = (Sample(((2, 3, 4),), (0, 2)), Sample(((5, 7),), (0, 1)))
    is_view = True
    dim1: int
    dim2: int

    @classmethod
    def bind(cls, x: Meta, dim1: DimLike, dim2: DimLike) -> Operation:
        return cls(resolve_dim(dim1, x.shape, "transpose"), resolve_dim(dim2, x.shape, "transpose"))

    @classmethod
    def last_two(cls, x: Meta) -> Operation:
        """candle's ``t()``. Raises ``UnexpectedNumberOfDimsError`` below rank 2."""
        if len(x.shape) < 2:
            raise UnexpectedNumberOfDimsError("t", "2 or more", x.shape)
        return cls(len(x.shape) - 2, len(x.shape) - 1)

    def infer(self, x: Meta) -> Meta:
        sizes = list(x.shape)
        sizes[self.dim1], sizes[self.dim2] = sizes[self.dim2], sizes[self.dim1]
        return Meta(Shape(sizes), x.dtype)

    def relayout(self, layout: Layout) -> Layout:
        return layout.transpose(self.dim1, self.dim2)

    def lower(self, x: mx.array) -> mx.array:
        return mx.swapaxes(x, self.dim1, self.dim2)

    @staticmethod
    def numpy(x: Any, dim1: int, dim2: int) -> Any:
        return np.swapaxes(x, dim1, dim2)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (mx.swapaxes(cotangent, self.dim1, self.dim2),)


class BroadcastAs(Operation):
    """The tensor repeated, without a copy, to a larger shape; sizes are aligned at the last dim.

    Raises ``BroadcastIncompatibleShapesError``. There is no placeholder ``-1``, as in candle.
    """

    candle = "Tensor::broadcast_as<S: Into<Shape>>(&self, shape: S) -> Result<Tensor>"
    methods = ("broadcast_as", "expand")
    samples = (Sample(((1, 3),), ((4, 5, 3),)), Sample(((),), ((2, 2),)))
    is_view = True
    shape: Shape

    @classmethod
    def bind(cls, x: Meta, shape: ShapeLike) -> Operation:
        target = Shape.of(shape, "broadcast_as")
        extra = len(target) - len(x.shape)
        if extra < 0 or any(a not in (1, b) for a, b in zip(x.shape, target[extra:])):
            raise BroadcastIncompatibleShapesError(x.shape, target)
        return cls(target)

    def infer(self, x: Meta) -> Meta:
        return Meta(self.shape, x.dtype)

    def relayout(self, layout: Layout) -> Layout:
        return layout.broadcast_as(self.shape)

    def lower(self, x: mx.array) -> mx.array:
        return mx.broadcast_to(x, self.shape)

    @staticmethod
    def numpy(x: Any, shape: Shape) -> Any:
        return np.broadcast_to(x, shape)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (reduce_to(cotangent, inputs[0]),)


class Squeeze(Operation):
    """A dim of size 1 removed; a dim of another size is left as it is."""

    candle = "Tensor::squeeze<D: Dim>(&self, dim: D) -> Result<Tensor>"
    methods = ("squeeze",)
    samples = (Sample(((5, 1, 3),), (1,)), Sample(((5, 3),), (1,)))
    is_view = True
    dim: int

    @classmethod
    def bind(cls, x: Meta, dim: DimLike) -> Operation:
        return cls(resolve_dim(dim, x.shape, "squeeze"))

    def infer(self, x: Meta) -> Meta:
        if x.shape[self.dim] != 1:
            return x
        return Meta(Shape(x.shape[: self.dim] + x.shape[self.dim + 1 :]), x.dtype)

    def changes_nothing(self, x: Meta) -> bool:
        return x.shape[self.dim] != 1

    def relayout(self, layout: Layout) -> Layout:
        if layout.shape[self.dim] != 1:
            return layout
        sizes, strides = (part[: self.dim] + part[self.dim + 1 :] for part in (layout.shape, layout.stride))
        return layout._replace(shape=Shape(sizes), stride=strides)

    def lower(self, x: mx.array) -> mx.array:
        return mx.squeeze(x, self.dim) if x.shape[self.dim] == 1 else x

    @staticmethod
    def numpy(x: Any, dim: int) -> Any:
        return np.squeeze(x, dim) if x.shape[dim] == 1 else x

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent.reshape(inputs[0].shape),)


class Unsqueeze(Operation):
    """A dim of size 1 inserted; ``-1`` makes it the last."""

    candle = "Tensor::unsqueeze<D: Dim>(&self, dim: D) -> Result<Tensor>"
    methods = ("unsqueeze",)
    samples = (Sample(((5, 3),), (0,)), Sample(((5, 3),), (2,)), Sample(((),), (0,)))
    is_view = True
    dim: int

    @classmethod
    def bind(cls, x: Meta, dim: DimLike) -> Operation:
        return cls(resolve_insertion(dim, x.shape, "unsqueeze"))

    def infer(self, x: Meta) -> Meta:
        return Meta(Shape((*x.shape[: self.dim], 1, *x.shape[self.dim :])), x.dtype)

    def relayout(self, layout: Layout) -> Layout:
        # A dim of size 1 may have any stride; candle gives it the one of the dim it is put before.
        sizes, strides = list(layout.shape), list(layout.stride)
        strides.insert(self.dim, strides[self.dim] if self.dim < len(strides) else 1)
        sizes.insert(self.dim, 1)
        return layout._replace(shape=Shape(sizes), stride=tuple(strides))

    def lower(self, x: mx.array) -> mx.array:
        return mx.expand_dims(x, self.dim)

    @staticmethod
    def numpy(x: Any, dim: int) -> Any:
        return np.expand_dims(x, dim)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent.reshape(inputs[0].shape),)

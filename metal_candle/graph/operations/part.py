"""Records that take a part of a tensor, or put one in its place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from ...error import (
    DTypeMismatchError,
    NarrowInvalidArgsError,
    ShapeMismatchBinaryOpError,
    UnexpectedNumberOfDimsError,
)
from ...layout import Layout
from ...shape import DimLike, Shape, resolve_dim
from ..operation import Gradients, Meta, Operation, Sample
from .counts import integer


class Narrow(Operation):
    """``len`` elements of a dim from ``start`` on. Raises ``NarrowInvalidArgsError``: nothing is clamped."""

    candle = "Tensor::narrow<D: Dim>(&self, dim: D, start: usize, len: usize) -> Result<Tensor>"
    methods = ("narrow",)
    samples = (Sample(((5, 123),), (1, 100, 23)), Sample(((2, 3, 4),), (0, 1, 1)), Sample(((4,),), (0, 4, 0)))
    is_view = True
    dim: int
    start: int
    length: int

    @classmethod
    def bind(cls, x: Meta, dim: DimLike, start: int, len: int) -> Operation:
        axis = resolve_dim(dim, x.shape, "narrow")
        first, length = integer("narrow", "start", start), integer("narrow", "len", len)
        if first < 0 or length < 0 or first + length > x.shape[axis]:
            raise NarrowInvalidArgsError(x.shape, axis, first, length)
        return cls(axis, first, length)

    def infer(self, x: Meta) -> Meta:
        return Meta(Shape((*x.shape[: self.dim], self.length, *x.shape[self.dim + 1 :])), x.dtype)

    def changes_nothing(self, x: Meta) -> bool:
        return self.length == x.shape[self.dim]

    def relayout(self, layout: Layout) -> Layout:
        return layout.narrow(self.dim, self.start, self.length)

    def lower(self, x: mx.array) -> mx.array:
        return x[(slice(None),) * self.dim + (slice(self.start, self.start + self.length),)]

    @staticmethod
    def numpy(x: Any, dim: int, start: int, length: int) -> Any:
        return x[(slice(None),) * dim + (slice(start, start + length),)]

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        shape = inputs[0].shape
        pads = [(0, 0)] * len(shape)
        pads[self.dim] = (self.start, shape[self.dim] - self.start - self.length)
        return (mx.pad(cotangent, pads),)


def _as_python(slices: Sequence[tuple[int, int, int]]) -> tuple[slice, ...]:
    # A stop below 0 of a backward slice means "past the first", which Python writes as None.
    return tuple(slice(start, None if stop < 0 else stop, step) for start, stop, step in slices)


@functools.lru_cache(1024)
def _as_index(
    slices: tuple[tuple[int, int, int], ...], dims: tuple[int, ...] | None, rank: int
) -> tuple[slice | int | None, ...]:
    """What stands in MLX's brackets: an int for a dim that is dropped, ``None`` for a new one."""
    if dims is None:
        return _as_python(slices)
    parts: list[slice | int] = [*_as_python(slices), *[slice(None)] * (rank - len(slices))]
    index: list[slice | int | None] = []
    dim = 0
    for kept in (*dims, rank):
        if kept < 0:
            index.append(None)
            continue
        # A dim that is dropped has one element, the one its bounds begin with.
        index += [slices[dropped][0] if dropped < len(slices) else 0 for dropped in range(dim, kept)]
        index += parts[kept : kept + 1]
        dim = kept + 1
    return tuple(index)


class Slice(Operation):
    """Python's slices of the leading dims, each with start, stop and step already resolved.

    ``dims`` are the dims that the result has, ``-1`` a new one of size 1; one of size 1 that is not named is
    dropped. Without it all stay. So ``t[0, :, None]`` is one view.
    """

    slices: tuple[tuple[int, int, int], ...]
    dims: tuple[int, ...] | None = None
    samples = (
        Sample(((5, 7),), (((0, 5, 2), (1, 6, 1)),)),
        Sample(((5, 7),), (((4, -1, -1),),)),
        Sample(((5, 7, 2),), (((3, 0, -2), (6, 1, -3)),)),
        Sample(((5, 7),), (((0, 0, 1),),)),
        Sample(((5, 7, 2),), (((0, 5, 1), (3, 4, 1)), (-1, 0, -1, 2))),
        Sample(((3,),), (((1, 2, 1),), ())),
        Sample(((),), ((), (-1,))),
    )
    is_view = True

    def _sizes(self, shape: Sequence[int]) -> list[int]:
        sizes = [len(range(*bounds)) for bounds in self.slices]
        return [*sizes, *shape[len(sizes) :]]

    def infer(self, x: Meta) -> Meta:
        sizes = self._sizes(x.shape)
        if self.dims is not None:
            sizes = [1 if dim < 0 else sizes[dim] for dim in self.dims]
        return Meta(Shape(sizes), x.dtype)

    def relayout(self, layout: Layout) -> Layout:
        inner = layout.sliced(self.slices)
        if self.dims is None:
            return inner
        sizes, strides, last = [], [], 1
        for dim in reversed(self.dims):
            # A dim of size 1 may have any stride; candle gives it the one of the dim it is put before.
            last = last if dim < 0 else inner.stride[dim]
            strides.append(last)
            sizes.append(1 if dim < 0 else inner.shape[dim])
        return Layout(Shape(reversed(sizes)), tuple(reversed(strides)), inner.start_offset)

    def lower(self, x: mx.array) -> mx.array:
        return x[_as_index(self.slices, self.dims, x.ndim)]

    @staticmethod
    def numpy(x: Any, slices: tuple[tuple[int, int, int], ...], dims: tuple[int, ...] | None = None) -> Any:
        part = x[_as_python(slices)]
        return part if dims is None else part.reshape([1 if dim < 0 else part.shape[dim] for dim in dims])

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        sliced = cotangent.reshape(self._sizes(inputs[0].shape))
        if not self.slices:
            return (sliced,)
        gradient = mx.zeros_like(inputs[0])
        if sliced.size:
            gradient[_as_python(self.slices)] = sliced
        return (gradient,)


class SliceAssign(Operation):
    """The tensor with a block of it, from ``starts`` on, replaced by another tensor of its rank.

    ``slice_scatter`` puts ``src`` at ``start`` of one dim, ``slice_scatter0`` at ``start`` of the first; the other
    sizes are equal. The gradient of the tensor is 0 where it was replaced.
    """

    arity = 2
    candle = "Tensor::slice_scatter<D: Dim>(&self, src: &Self, dim: D, start: usize) -> Result<Self>"
    methods = ("slice_scatter", "slice_scatter0")
    samples = (
        Sample(((5, 7), (2, 3)), ((1, 4),)),
        Sample(((5, 7), (5, 7)), ((0, 0),)),
        Sample(((3, 2), (0, 2)), ((3, 0),)),
    )
    work = "move"
    starts: tuple[int, ...]

    @classmethod
    def surface(cls) -> dict[str, Callable[..., Operation]]:
        return {"slice_scatter": cls.bind, "slice_scatter0": cls.bind0}

    @classmethod
    def bind(cls, x: Meta, src: Meta, dim: DimLike, start: int) -> Operation:
        return cls.bind_as("slice_scatter", x, src, dim, start)

    @classmethod
    def bind_as(cls, op: str, x: Meta, src: Meta, dim: DimLike, start: int) -> Operation:
        """``bind`` under the name that the caller used, which errors carry."""
        return cls._at(op, x, src, resolve_dim(dim, x.shape, op), start)

    @classmethod
    def bind0(cls, x: Meta, src: Meta, start: int) -> Operation:
        """candle's ``slice_scatter0``: along the first dim."""
        return cls._at("slice_scatter0", x, src, resolve_dim(0, x.shape, "slice_scatter0"), start)

    @classmethod
    def _at(cls, op: str, x: Meta, src: Meta, dim: int, start: int) -> Operation:
        first = integer(op, "start", start, 0)
        if x.dtype is not src.dtype:
            raise DTypeMismatchError(op, x.dtype, src.dtype)
        if len(x.shape) != len(src.shape):
            raise UnexpectedNumberOfDimsError(f"{op}: src", len(x.shape), src.shape)
        for i, (size, part) in enumerate(zip(x.shape, src.shape)):
            if first + part > size if i == dim else part != size:
                takes = f"a src of the tensor's shape but in dim {dim}, where {first} + its size <= {x.shape[dim]}"
                raise ShapeMismatchBinaryOpError(f"{op} (self, src)", x.shape, src.shape, takes)
        return cls(tuple(first if i == dim else 0 for i in range(len(x.shape))))

    def infer(self, x: Meta, src: Meta) -> Meta:
        if x.dtype is not src.dtype:
            raise DTypeMismatchError("slice_assign", x.dtype, src.dtype)
        inside = len(x.shape) == len(src.shape) == len(self.starts)
        if not inside or any(a + b > c for a, b, c in zip(self.starts, src.shape, x.shape)):
            takes = f"a block that from {self.starts} on lies in the tensor"
            raise ShapeMismatchBinaryOpError("slice_assign (self, src)", x.shape, src.shape, takes)
        return x

    def _region(self, src: Any) -> tuple[slice, ...]:
        return tuple(slice(start, start + size) for start, size in zip(self.starts, src.shape))

    def lower(self, x: mx.array, src: mx.array) -> mx.array:
        if not src.size or not x.ndim:
            return src if src.size else x
        return mx.slice_update(x, src, mx.array(self.starts), list(range(x.ndim)))

    @staticmethod
    def numpy(x: Any, src: Any, starts: tuple[int, ...]) -> Any:
        result = x.copy()
        result[tuple(slice(start, start + size) for start, size in zip(starts, src.shape))] = src
        return result

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return self.lower(cotangent, mx.zeros_like(inputs[1])), cotangent[self._region(inputs[1])]

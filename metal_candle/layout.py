"""Where a tensor's elements lie in the storage it shares with its views; candle's ``Layout``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .error import BroadcastIncompatibleShapesError, NarrowInvalidArgsError
from .shape import DimLike, DimsLike, Shape, ShapeLike, resolve_dim, resolve_dims


class Layout(NamedTuple):
    """Sizes, strides and the first element's place, in elements of the storage. candle: ``candle_core::Layout``."""

    shape: Shape
    stride: tuple[int, ...]
    start_offset: int = 0

    @staticmethod
    def contiguous(shape: ShapeLike) -> Layout:
        """Row-major from the storage's first element."""
        return Layout.contiguous_with_offset(shape, 0)

    @staticmethod
    def contiguous_with_offset(shape: ShapeLike, start_offset: int) -> Layout:
        """Row-major from ``start_offset`` on."""
        sizes = Shape.of(shape)
        return Layout(sizes, sizes.stride_contiguous(), start_offset)

    def dims(self) -> list[int]:
        """The sizes as a list."""
        return list(self.shape)

    def dim(self, dim: DimLike) -> int:
        """The size of one dim. Raises ``DimOutOfRangeError``."""
        return self.shape[resolve_dim(dim, self.shape, "dim")]

    def is_contiguous(self) -> bool:
        """Whether the elements lie row-major without gaps; dims of size 1 do not matter."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride)):
            if size > 1 and stride != step:
                return False
            step *= size
        return True

    def is_fortran_contiguous(self) -> bool:
        """Whether the elements lie column-major without gaps; dims of size 1 do not matter."""
        return Layout(Shape(self.shape[::-1]), self.stride[::-1]).is_contiguous()

    def contiguous_offsets(self) -> tuple[int, int] | None:
        """The first place and the one behind the last, if the elements lie row-major without gaps."""
        return (self.start_offset, self.start_offset + self.shape.elem_count()) if self.is_contiguous() else None

    def narrow(self, dim: DimLike, start: int, length: int) -> Layout:
        """``length`` entries of a dim from ``start`` on. Raises ``NarrowInvalidArgsError``."""
        axis = resolve_dim(dim, self.shape, "narrow")
        if start < 0 or length < 0 or start + length > self.shape[axis]:
            raise NarrowInvalidArgsError(self.shape, axis, start, length)
        return self.sliced([(0, size, 1) for size in self.shape[:axis]] + [(start, start + length, 1)])

    def sliced(self, slices: Sequence[tuple[int, int, int]]) -> Layout:
        """Resolved ``(start, stop, step)`` of the leading dims, as ``range`` takes them."""
        sizes, strides, offset = list(self.shape), list(self.stride), self.start_offset
        for axis, bounds in enumerate(slices):
            kept = range(*bounds)
            offset += bounds[0] * strides[axis] if kept else 0
            sizes[axis] = len(kept)
            strides[axis] *= bounds[2]
        return Layout(Shape(sizes), tuple(strides), offset)

    def transpose(self, dim1: DimLike, dim2: DimLike) -> Layout:
        """Two dims swapped."""
        first, second = (resolve_dim(dim, self.shape, "transpose") for dim in (dim1, dim2))
        order = list(range(len(self.shape)))
        order[first], order[second] = second, first
        return self.permute(order)

    def permute(self, dims: DimsLike) -> Layout:
        """The dims in another order."""
        order = resolve_dims(dims, self.shape, "permute")
        return Layout(Shape(self.shape[i] for i in order), tuple(self.stride[i] for i in order), self.start_offset)

    def broadcast_as(self, shape: ShapeLike) -> Layout:
        """Repeated to a larger shape: repeated dims have stride 0. Raises ``BroadcastIncompatibleShapesError``."""
        target = Shape.of(shape)
        extra = len(target) - len(self.shape)
        if extra < 0 or any(a not in (1, b) for a, b in zip(self.shape, target[extra:])):
            raise BroadcastIncompatibleShapesError(self.shape, target)
        own = [stride if a == b else 0 for a, b, stride in zip(self.shape, target[extra:], self.stride)]
        return Layout(target, (0,) * extra + tuple(own), self.start_offset)

    def reshaped(self, shape: Shape) -> Layout | None:
        """The same elements in another shape, or ``None`` where that takes a copy, as in candle: unless row-major."""
        return Layout.contiguous_with_offset(shape, self.start_offset) if self.is_contiguous() else None

    def block_of(self, storage: Shape) -> tuple[tuple[tuple[int, int, int], ...], tuple[int, ...]] | None:
        """The slices of a row-major storage that hold just these elements, and the order of its dims, if there are any.

        The slices are ``(start, stop, step)`` for each dim of the storage, steps positive; the order says which dim of
        the storage each dim of more than one element runs along.
        """
        strides, left = storage.stride_contiguous(), self.start_offset
        starts = []
        for size, stride in zip(storage, strides):
            starts.append(left // stride if size else 0)
            left -= starts[-1] * stride
        slices = [(start, start + 1, 1) for start in starts]
        order: list[int] = []
        for size, stride in zip(self.shape, self.stride):
            if size == 1:
                continue
            for dim in range(len(storage)):
                step = stride // strides[dim]
                last = starts[dim] + (size - 1) * step
                if step > 0 and stride % strides[dim] == 0 and last < storage[dim] and dim not in order:
                    slices[dim] = (starts[dim], last + 1, step)
                    order.append(dim)
                    break
            else:
                return None
        return tuple(slices), tuple(order)

    def overlaps(self) -> bool:
        """Whether two places of the tensor may be one of the storage, as in a broadcast view."""
        reach = 0
        for size, stride in sorted(zip(self.shape, self.stride), key=lambda pair: abs(pair[1])):
            if size > 1:
                if abs(stride) <= reach:
                    return True
                reach += (size - 1) * abs(stride)
        return False

    def places(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The place of every element in the storage, in the tensor's shape."""
        places = np.full(self.shape, self.start_offset, np.int64)
        for axis, (size, stride) in enumerate(zip(self.shape, self.stride)):
            along = np.arange(size, dtype=np.int64) * stride
            places += along.reshape((-1,) + (1,) * (len(self.shape) - axis - 1))
        return places

    def covers(self, elements: int) -> bool:
        """Whether it is the whole storage of so many elements, row-major."""
        return self.start_offset == 0 and math.prod(self.shape) == elements and self.is_contiguous()

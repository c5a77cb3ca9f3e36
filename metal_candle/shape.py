"""Shapes, dimensions and the rules that combine them; candle's ``Shape``, ``D`` and ``Dim``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Union

from .error import (
    DimOutOfRangeError,
    DuplicateDimIndexError,
    ShapeMismatchBinaryOpError,
    ShapeMismatchError,
    UnexpectedNumberOfDimsError,
)


class D(Enum):
    """A dimension counted from the end, as candle spells it."""

    Minus1 = -1
    Minus2 = -2


DimLike = Union[int, D]
DimsLike = Union[int, D, Sequence[Union[int, D]]]
ShapeLike = Union[int, Sequence[int]]


class Shape(tuple[int, ...]):
    """A tensor's sizes, row-major; a tuple with candle's accessors."""

    __slots__ = ()

    @classmethod
    def of(cls, shape: ShapeLike) -> Shape:
        """``shape`` as a ``Shape``: an int, tuple or list of sizes; ``()`` is a scalar's."""
        if type(shape) is cls:
            return shape
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        for size in sizes:
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise ShapeMismatchError(f"shape: got {sizes}; takes integers that are not negative")
        return cls(sizes)

    def rank(self) -> int:
        """Number of dimensions."""
        return len(self)

    def dims(self) -> list[int]:
        """The sizes as a list."""
        return list(self)

    def elem_count(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self)

    def dim(self, dim: DimLike) -> int:
        """Size of one dimension. Raises ``DimOutOfRangeError``."""
        return self[resolve_dim(dim, self, "dim")]

    def stride_contiguous(self) -> tuple[int, ...]:
        """Row-major strides in elements."""
        strides, step = [], 1
        for size in reversed(self):
            strides.append(step)
            step *= size
        return tuple(reversed(strides))


def resolve_dim(dim: DimLike, shape: Sequence[int], op: str) -> int:
    """``dim`` as an index from the front. Raises ``DimOutOfRangeError``."""
    value = dim.value if isinstance(dim, D) else dim
    rank = len(shape)
    if not -rank <= value < rank:
        raise DimOutOfRangeError(op, tuple(shape), value)
    return value + rank if value < 0 else value


def resolve_dims(dims: DimsLike, shape: Sequence[int], op: str) -> tuple[int, ...]:
    """Several dims, each from the front. Raises ``DimOutOfRangeError``, ``DuplicateDimIndexError``."""
    listed: Iterable[DimLike] = (dims,) if isinstance(dims, (int, D)) else dims
    resolved = tuple(resolve_dim(dim, shape, op) for dim in listed)
    if len(set(resolved)) != len(resolved):
        raise DuplicateDimIndexError(op, tuple(shape), resolved)
    return resolved


def resolve_insertion(dim: DimLike, rank: int, op: str) -> int:
    """Where a new dimension goes: 0..=rank, or from the end with -1 as the new last one."""
    value = dim.value if isinstance(dim, D) else dim
    if not -rank - 1 <= value <= rank:
        raise DimOutOfRangeError(op, (1,) * (rank + 1), value)
    return value + rank + 1 if value < 0 else value


def broadcast_shapes(lhs: Sequence[int], rhs: Sequence[int], op: str) -> Shape:
    """The common shape by NumPy's rule. Raises ``ShapeMismatchBinaryOpError``."""
    if tuple(lhs) == tuple(rhs):
        return Shape(lhs)
    rank = max(len(lhs), len(rhs))
    left = (1,) * (rank - len(lhs)) + tuple(lhs)
    right = (1,) * (rank - len(rhs)) + tuple(rhs)
    sizes = []
    for a, b in zip(left, right):
        if a != b and a != 1 and b != 1:
            raise ShapeMismatchBinaryOpError(op, tuple(lhs), tuple(rhs), "shapes that broadcast")
        sizes.append(b if a == 1 else a)
    return Shape(sizes)


def fill_hole(shape: ShapeLike, elements: int, op: str) -> Shape:
    """``shape`` with its one hole (``-1`` or ``()``) filled so that it has ``elements`` elements."""
    sizes: list[int] = [shape] if isinstance(shape, int) else [-1 if size == () else size for size in shape]  # type: ignore[comparison-overlap]
    if sizes.count(-1) > 1:
        raise ShapeMismatchError(f"{op}: got {tuple(sizes)}; takes at most one hole")
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        if known == 0 or elements % known:
            raise ShapeMismatchError(f"{op}: {elements} elements do not fill {tuple(sizes)}")
        sizes[sizes.index(-1)] = elements // known
    filled = Shape.of(tuple(sizes))
    if filled.elem_count() != elements:
        raise ShapeMismatchError(f"{op}: {elements} elements do not fit shape {tuple(filled)} of {filled.elem_count()}")
    return filled


def expect_rank(shape: Sequence[int], rank: int, op: str) -> None:
    """Raise ``UnexpectedNumberOfDimsError`` unless ``shape`` has ``rank`` dimensions."""
    if len(shape) != rank:
        raise UnexpectedNumberOfDimsError(op, rank, tuple(shape))

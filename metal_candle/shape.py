"""Shapes, dimensions and the rules that combine them; candle's ``Shape``, ``D``, ``Dim`` and ``Dims``."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Union

from .error import (
    ArgumentTypeError,
    DimOutOfRangeError,
    DuplicateDimIndexError,
    Error,
    ShapeMismatchBinaryOpError,
    ShapeMismatchError,
    UnexpectedNumberOfDimsError,
)
from .error.text import described, shown

# The largest size of one dim that MLX can hold.
MAX_SIZE = 2**31 - 1


class D:
    """A dimension counted from the end: ``D.Minus1`` is the last one, ``D.Minus(n)`` the n-th last.

    candle: ``candle_core::D``.
    """

    __slots__ = ("value",)
    value: int

    Minus1: ClassVar[D]
    Minus2: ClassVar[D]

    def __init__(self, value: int) -> None:
        if type(value) is not int or value >= 0:
            raise Error(f"D: got {value!r}; takes a negative integer, -1 for the last dim")
        object.__setattr__(self, "value", value)

    @staticmethod
    def Minus(n: int) -> D:
        """The n-th last dimension, n of 1 or more. Raises ``Error`` for any other n."""
        if type(n) is not int or n < 1:
            raise Error(f"D.Minus: got {n!r}; takes 1 or more, 1 for the last dim")
        return D(-n)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a D does not change")

    def __reduce__(self) -> tuple[type[D], tuple[int]]:
        return D, (self.value,)

    def __eq__(self, other: object) -> bool:
        return self.value == other.value if isinstance(other, D) else NotImplemented

    def __hash__(self) -> int:
        return hash((D, self.value))

    def __repr__(self) -> str:
        return f"D.Minus{-self.value}" if self.value > -3 else f"D.Minus({-self.value})"


D.Minus1 = D(-1)
D.Minus2 = D(-2)

DimLike = Union[int, D]
DimsLike = Union[int, D, Sequence[Union[int, D]]]
ShapeLike = Union[int, Sequence[int]]


class Shape(tuple[int, ...]):
    """A tensor's sizes, row-major; a tuple with candle's accessors. candle: ``candle_core::Shape``."""

    __slots__ = ()

    SCALAR: ClassVar[Shape]

    @classmethod
    def of(cls, shape: ShapeLike, op: str = "shape") -> Shape:
        """``shape`` as a ``Shape``: an int, tuple or list of sizes; ``()`` is a scalar's. ``op`` asks for it.

        Raises ``ArgumentTypeError`` for anything but integers, ``ShapeMismatchError`` for those that are not from 0
        to 2^31 - 1, which is MLX's limit.
        """
        if type(shape) is cls:
            return shape
        sizes = several(shape)
        for size in sizes:
            if type(size) is not int or not 0 <= size <= MAX_SIZE:
                return cls(_checked(sizes, op))
        return cls(sizes)

    @classmethod
    def from_dims(cls, dims: Sequence[int]) -> Shape:
        """A shape of these sizes. Raises ``ShapeMismatchError`` as ``of`` does."""
        return cls.of(dims)

    def rank(self) -> int:
        """Number of dimensions."""
        return len(self)

    def dims(self) -> list[int]:
        """The sizes as a list."""
        return list(self)

    def into_dims(self) -> list[int]:
        """The sizes as a list; the same as ``dims`` here, where nothing is moved."""
        return list(self)

    def elem_count(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self)

    def dim(self, dim: DimLike) -> int:
        """Size of one dimension. Raises ``DimOutOfRangeError``."""
        return self[resolve_dim(dim, self, "dim")]

    def dims0(self) -> tuple[()]:
        """``()`` of a scalar's shape. Raises ``UnexpectedNumberOfDimsError`` for any other."""
        return dims0(self)

    def dims1(self) -> int:
        """The one size. Raises ``UnexpectedNumberOfDimsError`` unless there is one."""
        return dims1(self)

    def dims2(self) -> tuple[int, int]:
        """The two sizes. Raises ``UnexpectedNumberOfDimsError`` unless there are two."""
        return dims2(self)

    def dims3(self) -> tuple[int, int, int]:
        """The three sizes. Raises ``UnexpectedNumberOfDimsError`` unless there are three."""
        return dims3(self)

    def dims4(self) -> tuple[int, int, int, int]:
        """The four sizes. Raises ``UnexpectedNumberOfDimsError`` unless there are four."""
        return dims4(self)

    def dims5(self) -> tuple[int, int, int, int, int]:
        """The five sizes. Raises ``UnexpectedNumberOfDimsError`` unless there are five."""
        return dims5(self)

    def extend(self, additional_dims: Sequence[int]) -> Shape:
        """A longer shape, with more sizes behind these; this one stays as it is.

        Raises ``ShapeMismatchError`` as ``of`` does.
        """
        return Shape((*self, *Shape.of(additional_dims)))

    def stride_contiguous(self) -> tuple[int, ...]:
        """Row-major strides in elements."""
        strides, step = [], 1
        for size in reversed(self):
            strides.append(step)
            step *= size
        return tuple(reversed(strides))

    def is_contiguous(self, stride: Sequence[int]) -> bool:
        """Whether elements at these strides, counted in elements, lie in row-major order without a gap.

        The stride of a dim of size 1 does not matter, nor that of a dim of size 0.
        """
        return _is_dense(reversed(self), reversed(stride)) if len(stride) == len(self) else False

    def is_fortran_contiguous(self, stride: Sequence[int]) -> bool:
        """Whether elements at these strides lie in column-major order without a gap."""
        return _is_dense(self, stride) if len(stride) == len(self) else False

    def broadcast_shape_binary_op(self, rhs: ShapeLike, op: str) -> Shape:
        """The shape that ``op`` on this shape and ``rhs`` gives when it broadcasts.

        Raises ``ShapeMismatchBinaryOpError``.
        """
        return broadcast_shapes(self, Shape.of(rhs), op)


SCALAR = Shape()
"""The shape of a scalar."""
Shape.SCALAR = SCALAR


def _integer(value: Any) -> int:
    """``value`` as an int. Raises ``TypeError`` for booleans and what is no integer."""
    if isinstance(value, bool):
        raise TypeError("a boolean is no size")
    return operator.index(value)


def several(value: Any) -> tuple[Any, ...]:
    """The members of a list, a tuple, another sequence or a 1-D array; anything else, text too, stands alone."""
    if isinstance(value, (tuple, list)) or getattr(value, "ndim", 0) == 1:
        return tuple(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        return tuple(value)
    return (value,)


def _listed(sizes: Sequence[Any]) -> str:
    return shown(", ".join(map(described, sizes)) + ("," if len(sizes) == 1 else ""))


def _checked(sizes: tuple[Any, ...], op: str) -> list[int]:
    """The sizes as ints, NumPy's for example. Raises as ``Shape.of``."""
    integers = []
    for size in sizes:
        try:
            integers.append(_integer(size))
        except TypeError:
            raise ArgumentTypeError(f"{op}: got ({_listed(sizes)}); takes integers that are not negative") from None
    if min(integers) < 0:
        raise ShapeMismatchError(f"{op}: got ({_listed(integers)}); takes integers that are not negative")
    if max(integers) > MAX_SIZE:
        raise ShapeMismatchError(f"{op}: got ({_listed(integers)}); takes sizes up to {MAX_SIZE}")
    return integers


def _is_dense(sizes: Iterable[int], strides: Iterable[int]) -> bool:
    step = 1
    for size, stride in zip(sizes, strides):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


# --- dims -------------------------------------------------------------------------------------


def dims0(dims: Sequence[int]) -> tuple[()]:
    """``()`` of no sizes. Raises ``UnexpectedNumberOfDimsError`` for any other number."""
    expect_rank(dims, 0, "dims0")
    return ()


def dims1(dims: Sequence[int]) -> int:
    """The one size of a list of one. Raises ``UnexpectedNumberOfDimsError``."""
    expect_rank(dims, 1, "dims1")
    return dims[0]


def dims2(dims: Sequence[int]) -> tuple[int, int]:
    """The sizes of a list of two. Raises ``UnexpectedNumberOfDimsError``."""
    expect_rank(dims, 2, "dims2")
    return dims[0], dims[1]


def dims3(dims: Sequence[int]) -> tuple[int, int, int]:
    """The sizes of a list of three. Raises ``UnexpectedNumberOfDimsError``."""
    expect_rank(dims, 3, "dims3")
    return dims[0], dims[1], dims[2]


def dims4(dims: Sequence[int]) -> tuple[int, int, int, int]:
    """The sizes of a list of four. Raises ``UnexpectedNumberOfDimsError``."""
    expect_rank(dims, 4, "dims4")
    return dims[0], dims[1], dims[2], dims[3]


def dims5(dims: Sequence[int]) -> tuple[int, int, int, int, int]:
    """The sizes of a list of five. Raises ``UnexpectedNumberOfDimsError``."""
    expect_rank(dims, 5, "dims5")
    return dims[0], dims[1], dims[2], dims[3], dims[4]


def expect_rank(shape: Sequence[int], rank: int, op: str) -> None:
    """Raise ``UnexpectedNumberOfDimsError`` unless ``shape`` has ``rank`` dimensions."""
    if len(shape) != rank:
        raise UnexpectedNumberOfDimsError(op, rank, tuple(shape))


def _signed(dim: Any, op: str) -> int:
    """The number that a dim stands for: negative ones count from the end."""
    if isinstance(dim, D):
        return dim.value
    try:
        return _integer(dim)
    except TypeError:
        takes = "takes an integer or D.Minus1, D.Minus2, D.Minus(n)"
        raise ArgumentTypeError(f"{op}: got {described(dim)} for a dim; {takes}") from None


def resolve_dim(dim: DimLike, shape: Sequence[int], op: str) -> int:
    """``dim`` as an index from the front. Raises ``DimOutOfRangeError``, ``ArgumentTypeError`` for what is no dim."""
    value = dim if type(dim) is int else _signed(dim, op)
    rank = len(shape)
    if not -rank <= value < rank:
        raise DimOutOfRangeError(op, tuple(shape), value)
    return value + rank if value < 0 else value


def normalize_axis(axis: int, shape: Sequence[int]) -> int:
    """A signed axis as one from the front; candle's ``Tensor::normalize_axis``. Raises ``DimOutOfRangeError``."""
    return resolve_dim(axis, shape, "normalize_axis")


def resolve_dims(dims: DimsLike, shape: Sequence[int], op: str) -> tuple[int, ...]:
    """Several dims, each from the front. Raises ``DimOutOfRangeError``, ``DuplicateDimIndexError``."""
    resolved = tuple(resolve_dim(dim, shape, op) for dim in several(dims))
    if len(set(resolved)) != len(resolved):
        raise DuplicateDimIndexError(op, tuple(shape), resolved)
    return resolved


def resolve_insertion(dim: DimLike, shape: Sequence[int], op: str) -> int:
    """Where a new dimension goes: 0..=rank, or from the end with -1 as the new last one."""
    value = dim if type(dim) is int else _signed(dim, op)
    rank = len(shape)
    if not -rank - 1 <= value <= rank:
        raise DimOutOfRangeError(op, tuple(shape), value, inserted=True)
    return value + rank + 1 if value < 0 else value


# --- combining and filling --------------------------------------------------------------------


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
    """``shape`` with its one hole (``-1`` or ``()``) filled so that it has ``elements`` elements.

    Raises ``ShapeMismatchError`` where no size fills the hole, or where there is none and the count differs.
    """
    sizes: list[Any] = [-1 if type(size) is tuple and not size else size for size in several(shape)]
    if any(type(size) is int and size == -1 for size in sizes):
        hole = sizes.index(-1)
        others = sizes[:hole] + sizes[hole + 1 :]
        if any(type(size) is int and size == -1 for size in others):
            raise ShapeMismatchError(f"{op}: got {tuple(sizes)}; takes at most one hole")
        known = Shape.of(others, op).elem_count()
        if known == 0 or elements % known:
            raise ShapeMismatchError(f"{op}: {elements} elements do not fill {tuple(sizes)}")
        sizes[hole] = elements // known
    filled = Shape.of(sizes, op)
    if filled.elem_count() != elements:
        raise ShapeMismatchError(f"{op}: {elements} elements do not fit shape {tuple(filled)} of {filled.elem_count()}")
    return filled

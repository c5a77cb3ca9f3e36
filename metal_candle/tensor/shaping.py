"""Tensor methods of shapes and parts that are more than one operation, in terms of those that are one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..error import (
    Error,
    OpRequiresAtLeastOneTensorError,
    OpRequiresAtLeastTwoTensorsError,
    ShapeMismatchBinaryOpError,
    ShapeMismatchError,
)
from ..graph.node import record
from ..graph.operation import Operation
from ..graph.operations.counts import integer
from ..graph.operations.join import Cat
from ..graph.operations.movement import Transpose
from ..graph.operations.part import SliceAssign
from ..graph.operations.sort import SortLastDim
from ..graph.operations.structure import Pick
from ..shape import DimLike, Shape, ShapeLike, expect_rank, resolve_dim, resolve_insertion
from .arguments import boolean, no_tensor, renamed, tensors
from .base import TensorBase
from .index import block, index
from .methods import TensorMethods

S = TypeVar("S", bound="ShapingMethods")


class ShapingMethods(TensorMethods):
    """Other shapes of the same elements, parts and joins."""

    __slots__ = ()

    def t(self: S) -> S:
        """The last two dims swapped. Raises ``UnexpectedNumberOfDimsError`` below rank 2."""
        return self._record(Transpose.last_two(self._node.meta))  # type: ignore[arg-type]

    def flatten(self: S, start: DimLike, end: DimLike) -> S:
        """The dims from ``start`` to ``end``, inclusive, as one; a scalar becomes ``(1,)``."""
        if not self.shape:
            return self.reshape((1,))
        first, last = resolve_dim(start, self.shape, "flatten"), resolve_dim(end, self.shape, "flatten")
        if first >= last:
            return self
        merged = Shape(self.shape[first : last + 1]).elem_count()
        return self.reshape((*self.shape[:first], merged, *self.shape[last + 1 :]))

    def flatten_all(self: S) -> S:
        """All elements as one dim."""
        return self.reshape((self.elem_count(),))

    def flatten_to(self: S, end: DimLike) -> S:
        """The dims up to and including ``end`` as one."""
        return self.flatten(0, end)

    def flatten_from(self: S, start: DimLike) -> S:
        """The dims from ``start`` on as one."""
        return self.flatten(start, -1)

    def get(self: S, i: int) -> S:
        """Entry ``i`` of the first dim, which is dropped. Raises ``NarrowInvalidArgsError``."""
        return self if not self.shape else _entry("get", self, 0, i)

    def get_on_dim(self: S, dim: DimLike, index: int) -> S:
        """Entry ``index`` of a dim, which is dropped. Raises ``DimOutOfRangeError``, ``NarrowInvalidArgsError``.

        candle: ``Tensor::get_on_dim<D: Dim>(&self, dim: D, index: usize) -> Result<Tensor>``
        """
        axis = resolve_dim(dim, self.shape, "get_on_dim")
        return _entry("get_on_dim", self, axis, index)

    def chunk(self: S, chunks: int, dim: DimLike) -> list[S]:
        """``chunks`` nearly equal parts of a dim, the larger ones first; fewer if it is shorter.

        Raises ``DimOutOfRangeError``, and ``ShapeMismatchError`` for less than one chunk.
        """
        if integer("chunk", "chunks", chunks) < 1:
            raise ShapeMismatchError(f"chunk: got {chunks} chunks; takes at least 1")
        axis = resolve_dim(dim, self.shape, "chunk")
        size, parts, start = self.shape[axis], [], 0
        for i in range(min(chunks, size)):
            length = size // chunks + (i < size % chunks) if size >= chunks else 1
            parts.append(self.narrow(axis, start, length))
            start += length
        return parts

    def broadcast_left(self: S, left: ShapeLike) -> S:
        """The tensor repeated along new leading dims."""
        return self.broadcast_as((*Shape.of(left, "broadcast_left"), *self.shape))

    def slice_assign(self: S, ranges: Any, src: TensorBase) -> S:
        """The tensor with the block that ``ranges`` names, one for each dim, replaced by ``src``.

        A range is a slice or ``range`` of step 1, a pair ``(start, end)``, or an int for one place. Raises
        ``ShapeMismatchError`` for a range that is empty or leaves its dim and where ``src`` has other sizes.

        candle: ``Tensor::slice_assign<D: RangeBounds<usize>>(&self, ranges: &[D], src: &Tensor) -> Result<Self>``
        """
        if not isinstance(src, TensorBase):
            raise no_tensor("slice_assign", src)
        found = block(ranges, self.shape)
        sizes = tuple(end - start for start, end in found)
        if sizes != tuple(src.shape):
            raise ShapeMismatchBinaryOpError("slice_assign (ranges, src)", sizes, src.shape, "equal shapes")
        return self._record(SliceAssign(tuple(start for start, _ in found)), src)

    def sort_last_dim(self: S, asc: bool) -> tuple[S, S]:
        """The last dim sorted, ascending if ``asc``, and the ids, U32, that sort it; see ``arg_sort_last_dim``.

        Raises ``UnexpectedNumberOfDimsError`` for a scalar.

        candle: ``Tensor::sort_last_dim(&self, asc: bool) -> Result<(Tensor, Tensor)>``
        """
        both = record(SortLastDim(boolean("sort_last_dim", "asc", asc)), (self._node,))
        return self._wrap(record(Pick(0), (both,))), self._wrap(record(Pick(1), (both,)))

    @staticmethod
    def meshgrid(args: Sequence[S], xy_indexing: bool) -> list[S]:
        """Two or more 1-D tensors, each spread over the grid of all of them.

        The grid's sizes are in the order of ``args``; with ``xy_indexing`` in the reverse order, of all dims, as
        in candle (NumPy swaps the first two only). Raises ``OpRequiresAtLeastTwoTensorsError`` and
        ``UnexpectedNumberOfDimsError``.

        candle: ``Tensor::meshgrid<A: AsRef<Tensor>>(args: &[A], xy_indexing: bool) -> Result<Vec<Self>>``
        """
        args = tensors("meshgrid", args)
        boolean("meshgrid", "xy_indexing", xy_indexing)
        if len(args) < 2:
            raise OpRequiresAtLeastTwoTensorsError("meshgrid", len(args))
        for arg in args:
            expect_rank(arg.shape, 1, "meshgrid")
        sizes = [arg.shape[0] for arg in args]
        places = range(len(args))
        if xy_indexing:
            sizes, places = sizes[::-1], places[::-1]
        return [
            arg.reshape(tuple(size if i == place else 1 for i, size in enumerate(sizes))).broadcast_as(tuple(sizes))
            for arg, place in zip(args, places)
        ]

    def i(self: S, at: Any) -> S:
        """The part that ``at`` names: ints, slices, ``...``, ``None``, ids as tensors, lists and NumPy arrays, or a
        tuple of these, each for its own dim. Ints and slices are as in Python, where candle's are not clamped and
        not negative.

        Raises ``InvalidIndexError``, ``DimOutOfRangeError``, and ``Error`` for what is no index, such as a mask.
        """
        part: S = index(self, at)
        return part

    def __getitem__(self: S, at: Any) -> S:
        return self.i(at)


def _entry(op: str, tensor: S, dim: int, index: int) -> S:
    place = integer(op, "index", index)
    try:
        return tensor.narrow(dim, place, 1).squeeze(dim)
    except Error as error:
        renamed(error, op, ("narrow",))
        raise


def cat(given: Any, dim: DimLike, of: Callable[[TensorBase], Any]) -> Any:
    """Tensors, each made one of the result's kind by ``of``, joined along ``dim``.

    A single one is given back, whatever ``dim``, as in candle. Raises ``OpRequiresAtLeastOneTensorError``,
    ``DimOutOfRangeError``, ``UnexpectedNumberOfDimsError``, ``ShapeMismatchCatError``, ``DTypeMismatchError``:
    nothing is promoted.
    """
    listed = [of(tensor) for tensor in tensors("cat", given)]
    if not listed:
        raise OpRequiresAtLeastOneTensorError("cat")
    return _joined(listed, dim, "cat")


def stack(given: Any, dim: DimLike, of: Callable[[TensorBase], Any]) -> Any:
    """Tensors of one shape along a new ``dim``, which may be their rank; ``-1`` makes it the last."""
    listed = [of(tensor) for tensor in tensors("stack", given)]
    if not listed:
        raise OpRequiresAtLeastOneTensorError("stack")
    for other in listed:
        if other.shape != listed[0].shape:
            raise ShapeMismatchBinaryOpError("stack", listed[0].shape, other.shape, "equal shapes")
    axis = resolve_insertion(dim, listed[0].shape, "stack")
    return _joined([tensor.unsqueeze(axis) for tensor in listed], axis, "stack")


def _joined(listed: list[Any], dim: DimLike, op: str) -> Any:
    first = listed[0]
    if len(listed) == 1:
        return first
    operation: Operation = Cat(resolve_dim(dim, first.shape, op))
    try:
        return first._wrap(record(operation, tuple(tensor._node for tensor in listed)))
    except Error as error:
        renamed(error, op, ("cat",))
        raise

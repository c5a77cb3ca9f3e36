"""Tensor methods of shapes and parts that are more than one operation, in terms of those that are one."""

from __future__ import annotations

from typing import Any, TypeVar

from ..error import OpRequiresAtLeastOneTensorError, ShapeMismatchBinaryOpError, ShapeMismatchError
from ..graph.node import record
from ..graph.operation import Operation
from ..graph.operations.movement import Cat, Transpose
from ..shape import DimLike, Shape, ShapeLike, resolve_dim, resolve_insertion
from .index import index
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
        return self if not self.shape else self.narrow(0, i, 1).squeeze(0)

    def chunk(self: S, chunks: int, dim: DimLike) -> list[S]:
        """``chunks`` nearly equal parts of a dim, the larger ones first; fewer if it is shorter."""
        if chunks < 1:
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
        return self.broadcast_as((*Shape.of(left), *self.shape))

    def i(self: S, at: Any) -> S:
        """The part that ``at`` names: ints, slices, ``...``, ``None``, a 1-D tensor of ids, or a tuple of these."""
        part: S = index(self, at)
        return part

    def __getitem__(self: S, at: Any) -> S:
        return self.i(at)


def cat(tensors: Any, dim: DimLike) -> Any:
    """Tensors joined along ``dim``. Raises where ranks, dtypes or the other sizes differ."""
    if not tensors:
        raise OpRequiresAtLeastOneTensorError("cat")
    first = tensors[0]
    if len(tensors) == 1:
        return first
    operation: Operation = Cat(resolve_dim(dim, first.shape, "cat"))
    return first._wrap(record(operation, tuple(first._operand(tensor) for tensor in tensors)))


def stack(tensors: Any, dim: DimLike) -> Any:
    """Tensors of one shape along a new ``dim``."""
    if not tensors:
        raise OpRequiresAtLeastOneTensorError("stack")
    for other in tensors:
        if other.shape != tensors[0].shape:
            raise ShapeMismatchBinaryOpError("stack", tensors[0].shape, other.shape, "equal shapes")
    axis = resolve_insertion(dim, tensors[0].rank, "stack")
    return cat([tensor.unsqueeze(axis) for tensor in tensors], axis)

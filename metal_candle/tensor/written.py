"""The tensor methods that are more than one operation, in terms of those that are one."""

from __future__ import annotations

from typing import Any, TypeVar

from ..device import Device
from ..error import Error, ShapeMismatchBinaryOpError, ShapeMismatchError
from ..graph.node import record
from ..graph.operation import Operation
from ..graph.operations.linalg import Matmul
from ..graph.operations.movement import Cat, Transpose
from ..graph.operations.structure import ToDevice
from ..shape import DimLike, Shape, ShapeLike, resolve_dim, resolve_insertion
from .base import TensorBase
from .index import index
from .methods import TensorMethods

T = TypeVar("T", bound="WrittenMethods")
_matmul = Matmul()


class WrittenMethods(TensorMethods):
    """Methods spelled out by hand."""

    __slots__ = ()

    def matmul(self: T, rhs: TensorBase) -> T:
        """Matrix product ``(…, m, k) · (…, k, n)`` to ``(…, m, n)``, with equal leading dims.

        Raises ``ShapeMismatchBinaryOpError``; ``broadcast_matmul`` broadcasts the leading dims.

        candle: ``Tensor::matmul(&self, rhs: &Self) -> Result<Self>``
        """
        if not isinstance(rhs, TensorBase):
            raise Error(f"matmul: got {type(rhs).__name__} for an operand; takes a tensor")
        left, right = self.shape, rhs.shape
        if not len(left) == len(right) == 2 and left[:-2] != right[:-2]:
            takes = "equal leading dims; broadcast_matmul broadcasts"
            raise ShapeMismatchBinaryOpError("matmul", left, right, takes)
        return self._record(_matmul, rhs)

    def __matmul__(self: T, rhs: Any) -> T:
        return self._record(_matmul, rhs) if isinstance(rhs, TensorBase) else NotImplemented

    def t(self: T) -> T:
        """The last two dims swapped. Raises ``UnexpectedNumberOfDimsError`` below rank 2."""
        return self._record(Transpose.last_two(self._node.meta))  # type: ignore[arg-type]

    def flatten(self: T, start: DimLike, end: DimLike) -> T:
        """The dims from ``start`` to ``end``, inclusive, as one; a scalar becomes ``(1,)``."""
        if not self.shape:
            return self.reshape((1,))
        first, last = resolve_dim(start, self.shape, "flatten"), resolve_dim(end, self.shape, "flatten")
        if first >= last:
            return self
        merged = Shape(self.shape[first : last + 1]).elem_count()
        return self.reshape((*self.shape[:first], merged, *self.shape[last + 1 :]))

    def flatten_all(self: T) -> T:
        """All elements as one dim."""
        return self.reshape((self.elem_count(),))

    def flatten_to(self: T, end: DimLike) -> T:
        """The dims up to and including ``end`` as one."""
        return self.flatten(0, end)

    def flatten_from(self: T, start: DimLike) -> T:
        """The dims from ``start`` on as one."""
        return self.flatten(start, -1)

    def get(self: T, i: int) -> T:
        """Entry ``i`` of the first dim, which is dropped. Raises ``NarrowInvalidArgsError``."""
        return self if not self.shape else self.narrow(0, i, 1).squeeze(0)

    def chunk(self: T, chunks: int, dim: DimLike) -> list[T]:
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

    def broadcast_left(self: T, left: ShapeLike) -> T:
        """The tensor repeated along new leading dims."""
        return self.broadcast_as((*Shape.of(left), *self.shape))

    def softmax_stable(self: T) -> T:
        """Softmax over the last dim; metal-candle's ``TensorExt::softmax_stable``."""
        return self.softmax(-1)

    def softmax_fused(self: T) -> T:
        """Softmax over the last dim; metal-candle's ``CustomMetalOps::softmax_fused``."""
        return self.softmax(-1)

    def to_device(self: T, device: Device) -> T:
        """The same values on another device. Raises ``UnsupportedDTypeForOpError`` for F64 off the CPU.

        candle: ``Tensor::to_device(&self, device: &Device) -> Result<Tensor>``
        """
        return self if device == self.device else self._wrap(record(ToDevice(device), (self._node,), device))

    def __neg__(self: T) -> T:
        return self.neg()

    def __pow__(self: T, e: float) -> T:
        return self.powf(e)

    def i(self: T, at: Any) -> T:
        """The part that ``at`` names: ints, slices, ``...``, ``None``, a 1-D tensor of ids, or a tuple of these."""
        part: T = index(self, at)
        return part

    def __getitem__(self: T, at: Any) -> T:
        return self.i(at)


def cat(tensors: Any, dim: DimLike) -> Any:
    """Tensors joined along ``dim``. Raises where ranks, dtypes or the other sizes differ."""
    if not tensors:
        raise ShapeMismatchError("cat: got no tensors; takes at least one")
    first = tensors[0]
    if len(tensors) == 1:
        return first
    operation: Operation = Cat(resolve_dim(dim, first.shape, "cat"))
    return first._wrap(record(operation, tuple(first._operand(tensor) for tensor in tensors)))


def stack(tensors: Any, dim: DimLike) -> Any:
    """Tensors of one shape along a new ``dim``."""
    if not tensors:
        raise ShapeMismatchError("stack: got no tensors; takes at least one")
    for other in tensors:
        if other.shape != tensors[0].shape:
            raise ShapeMismatchBinaryOpError("stack", tensors[0].shape, other.shape, "equal shapes")
    axis = resolve_insertion(dim, tensors[0].rank, "stack")
    return cat([tensor.unsqueeze(axis) for tensor in tensors], axis)

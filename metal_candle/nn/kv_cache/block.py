"""What caches keep their entries in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...dtype import DType
from ...error import DeviceMismatchBinaryOpError, DTypeMismatchError, Error, ShapeMismatchError
from ...graph.node import current_trace
from ...shape import DimLike, resolve_dim
from ...tensor.arguments import expect_tensor
from ...tensor.base import TensorBase
from ...tensor.eager import Tensor
from ...tensor.lazy import LazyTensor
from .store import Store


class Block:
    """The first ``length`` entries along a dim of what has room for more.

    Eager ones are in a store of full size that new ones are written into. Lazy ones, those that a gradient passes
    through, and those of a function that ``compile`` traces are values: a tensor of the entries so far, which is joined
    to new ones.
    """

    def __init__(self, dim: DimLike) -> None:
        self.dim = dim
        self.length = 0
        self._store: Store | None = None
        self._joined: Any = None
        self._like: tuple[tuple[int, ...], DType] | None = None
        self._trace = current_trace()

    def clear(self) -> None:
        """Forget all entries; what was given away keeps them."""
        self._store = self._joined = self._like = None
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` entries; what was given away keeps them."""
        if length == 0:
            self.clear()
        elif length < self.length:
            if self._store is not None:
                self._store.settle()
            else:
                self._joined = self._joined.narrow(self.axis(self._joined), 0, length)
            self.length = length

    def axis(self, src: TensorBase) -> int:
        """The dim, counted from the front."""
        return resolve_dim(self.dim, src.shape, "append")

    def expect(self, what: str, src: TensorBase) -> int:
        """How many entries ``src`` has. Raises unless it can be appended; nothing has changed then."""
        expect_tensor("append", src, what)
        expect_place(self._trace)
        axis = self.axis(src)
        if self._joined is not None:
            src._lift(self._joined)
        if self._store is not None and src.device != self._store.device:
            raise DeviceMismatchBinaryOpError("append", self._store.device, src.device)
        if self._like is not None:
            expect_like(what, src, *self._like, axis, self.length)
        return src.shape[axis]

    def grow(self, room: int) -> None:
        """Make room for so many entries more, behind those that there is room for."""
        if self._store is not None and self._like is not None:
            shape, dtype = self._like
            axis, device = resolve_dim(self.dim, shape, "append"), self._store.device
            zeros = Tensor.zeros(_sized(shape, axis, room), dtype, device)
            whole = Tensor.cat([Tensor.from_mlx(self._store.array, device), zeros], axis)
            self._store = Store(whole.mlx(), device)

    def write(self, src: Any, at: int, room: int) -> None:
        """Put ``src`` at ``at``, which is at most ``length``, of ``room`` places."""
        axis = self.axis(src)
        count = src.shape[axis]
        is_value = isinstance(src, LazyTensor) or src.track_op() or current_trace() is not None
        if is_value or self._joined is not None:
            self._joined, self._store = self._with(src, at, axis), None
        else:
            if self._store is None:
                self._store = Store.zeros(_sized(src.shape, axis, room), src.dtype, src.device)
            if count:
                self._store.write(_part(axis, at, count), src.mlx())
        self._like = (tuple(src.shape), src.dtype)
        self.length = max(self.length, at + count)

    def _with(self, src: Any, at: int, axis: int) -> Any:
        """The entries with ``src`` among them, as a value."""
        if at == 0 and src.shape[axis] >= self.length:
            return src
        held = src._lift(self.entries())
        self.start()
        if at == self.length:
            return (LazyTensor if isinstance(src, LazyTensor) else Tensor).cat([held, src], axis)
        return held.slice_scatter(src, axis, at)

    def start(self, *others: Block) -> None:
        """Begin to compute what was written to this block and others, and what they gave."""
        Store.start(self._store, *[other._store for other in others])

    def entries(self) -> Any:
        """The entries, which no write will change; ``None`` before the first."""
        return self._joined if self._store is None else self._store.show(self._index())

    def snapshot(self) -> Any:
        """The entries as they are now, whatever is written later."""
        return self._joined if self._store is None else self._store.snapshot(self._index())

    def _index(self) -> tuple[slice, ...]:
        assert self._like is not None
        return _part(resolve_dim(self.dim, self._like[0], "append"), 0, self.length)

    def whole(self, room: int) -> Any:
        """All places as they are now, 0 where nothing was written; ``None`` before the first write."""
        if self._store is not None:
            return self._store.snapshot()
        if self._joined is None:
            return None
        return self._joined.pad_with_zeros(self.axis(self._joined), 0, room - self.length)


def _part(axis: int, start: int, count: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, start + count))


def _sized(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def expect_place(trace: Any) -> None:
    """Raise unless the function that is being traced, if any, is the one the cache was made in, under ``trace``."""
    if current_trace() is not trace:
        raise Error(
            "append: got a cache from outside of the function that compile is tracing, or one made in such a function; "
            "takes one that is made where it is used, as what it holds is no input of a compiled function"
        )


def expect_like(what: str, src: TensorBase, shape: Sequence[int], dtype: DType, axis: int, length: int) -> None:
    """Raise unless ``src`` can follow ``length`` entries along ``axis`` of this shape and dtype."""
    if len(src.shape) != len(shape) or any(i != axis and a != b for i, (a, b) in enumerate(zip(src.shape, shape))):
        held = list(_sized(shape, axis, length))
        raise ShapeMismatchError(
            f"append: got {what} {list(src.shape)} after {held}; takes shapes that are equal but for dim {axis}"
        )
    if src.dtype is not dtype:
        raise DTypeMismatchError(f"append: {what} so far and new", dtype, src.dtype)

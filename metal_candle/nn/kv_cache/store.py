"""An array that is written to, and tensors that show parts of it."""

from __future__ import annotations

from typing import Any
from weakref import ref

import mlx.core as mx

from ...device import Device
from ...dtype import DType
from ...graph.evaluate import on_device
from ...graph.node import GraphNode
from ...graph.operation import Meta, Operation
from ...shape import Shape
from ...tensor.eager import Tensor

MOST = 16
"""Arrays read since a write that may be on their way at once: who reads again and again waits then."""


class Store:
    """An MLX array that is written to: in place where nobody else holds what was there, else MLX copies it.

    What was written and read is computed from ``start`` on, of several stores at once: that takes longer than the
    writing. Nobody waits for it but the next write, which could not be in place before.
    """

    def __init__(self, array: mx.array, device: Device) -> None:
        self.array, self.device = array, device
        # Since the last write: what is perhaps not computed yet, and until then held, and what was shown.
        self._fresh: list[mx.array] = []
        self._shown: list[ref[Shown]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fresh": [], "_shown": []}  # a copy has done nothing yet

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: DType, device: Device) -> Store:
        """A store of zeros."""
        return cls(Tensor.zeros(shape, dtype, device).mlx(), device)

    def write(self, index: Any, values: mx.array) -> None:
        """Put ``values`` where MLX's ``index`` says."""
        mx.eval(self._fresh)
        for shown in self._shown:
            tensor = shown()
            if tensor is not None:
                tensor.let_go()
        with on_device(self.device):
            self.array[index] = values
        self._fresh, self._shown = [self.array], []

    @staticmethod
    def start(*stores: Store | None) -> None:
        """Begin to compute what was written to these stores and read from them."""
        arrays = [array for store in stores if store is not None for array in store._fresh]
        mx.async_eval(arrays)  # type: ignore[no-untyped-call]

    def read(self, index: Any) -> GraphNode:
        """A leaf with what is at ``index`` now."""
        with on_device(self.device):
            part = self.array[index]
        if len(self._fresh) == MOST:
            mx.eval(self._fresh)
            self._fresh = []
        self._fresh.append(part)
        return GraphNode(Operation.Input, (), Meta(Shape(part.shape), DType.of(part.dtype)), self.device, value=part)

    def show(self, index: Any) -> Tensor:
        """A tensor of a part that no write will change."""
        tensor = Shown(self, index)
        if len(self._shown) >= MOST:
            self._shown = [shown for shown in self._shown if shown() is not None]
        self._shown.append(ref(tensor))
        return tensor

    def settle(self) -> None:
        """Let what was shown keep its values, whatever is written there; while it is held, the next write copies."""
        for shown in self._shown:
            tensor = shown()
            if tensor is not None:
                tensor._node = tensor._node
        self._shown = []

    def snapshot(self, index: Any = ...) -> Tensor:
        """A tensor of a part as it is now: while it is held, the next write copies the array."""
        return Tensor._from_node(self.read(index))


class Shown(Tensor):
    """A part of a store that no write changes. Before one it lets its array go, and afterwards reads it anew."""

    __slots__ = ("_from", "_index", "_own")

    def __init__(self, store: Store, index: Any) -> None:
        self._from, self._index = store, index
        self._own: GraphNode | None = store.read(index)

    @property
    def _node(self) -> GraphNode:
        own = self._own
        if own is None:
            own = self._own = self._from.read(self._index)
            Store.start(self._from)
        return own

    @_node.setter
    def _node(self, node: GraphNode) -> None:
        """Take what an in-place method wrote, which is the tensor's own."""
        self._own, self._index = node, None

    def let_go(self) -> None:
        """Hold no array until somebody asks for one."""
        if self._index is not None:
            self._own = None

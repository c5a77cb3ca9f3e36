"""``Tensor``: the eager tensor of v1 and of candle; every method records and is evaluated at once."""

from __future__ import annotations

from typing import Any, TypeVar

from ..device import DeviceLike
from ..dtype import DTypeLike
from ..error import Error
from ..graph.evaluate import evaluate
from ..graph.node import GraphNode, current_trace
from ..graph.node_data import NodeData
from .base import TensorBase
from .construct import Constructors, as_array
from .grad_store import GradStore, backward

E = TypeVar("E", bound="Tensor")


class Tensor(Constructors):
    """A tensor with its value.

    It remembers its operation only where a variable is among its ancestors, as candle does. Inside a
    function that ``compile`` traces, operations are recorded and evaluated with the whole function.
    """

    __slots__ = ("__weakref__", "_node")

    def __init__(self, data: Any, device: DeviceLike = None, dtype: DTypeLike | None = None) -> None:
        self._node = type(self)._from_array(as_array(data, dtype), device)._node

    @classmethod
    def _from_node(cls: type[E], node: GraphNode) -> E:
        if node.value is None and current_trace() is None:
            evaluate([node])
        tensor: E = Tensor.__new__(Tensor)  # type: ignore[assignment]
        tensor._node = node
        return tensor

    def _wrap(self: E, node: GraphNode) -> E:
        return type(self)._from_node(node)

    def _operand(self, other: TensorBase) -> GraphNode:
        if not isinstance(other, Tensor):
            raise Error(
                f"operand: got a {type(other).__name__} beside an eager tensor; "
                "lift the eager one with LazyTensor.from_tensor or evaluate the lazy one with .eval()"
            )
        return other._node

    def _lift(self, other: TensorBase) -> Tensor:
        self._operand(other)
        return other  # type: ignore[return-value]

    def backward(self) -> GradStore:
        """Gradients of every variable this depends on; of a tensor with several elements, of its sum."""
        return backward(self, Tensor._from_node)

    def __repr__(self) -> str:
        if self._node.value is None:
            return f"Tensor[{list(self.shape)}; {self.dtype}, traced]"
        where = "" if self.device.is_cpu() else f", {self.device}"
        if self.rank == 0 or (self.rank == 1 and self.elem_count() < 10):
            values = ", ".join(str(value) for value in self.numpy().reshape(-1).tolist())
            return f"Tensor[{values}; {self.dtype}{where}]"
        return f"Tensor[dims {', '.join(map(str, self.shape))}; {self.dtype}{where}]"


NodeData.tensor_of = staticmethod(Tensor._from_node)

"""``backward()`` and the gradients it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..error import (
    BackwardNotSupportedError,
    DTypeMismatchError,
    Error,
    GradientNotFoundError,
    ShapeMismatchBinaryOpError,
)
from ..graph.differentiate import explain_missing, gradients
from ..graph.evaluate import evaluate
from ..graph.node import GraphNode, TensorId, current_trace, record, topological_order
from ..graph.operations.binary import Add
from .base import TensorBase
from .growth import growth

if TYPE_CHECKING:
    from .eager import Tensor

_add = Add()
COMPILED = "the end of a compiled function"
"""Why a result of ``compile`` passes no gradient on that its operations would have passed."""


class GradStore:
    """Gradients by tensor: after ``backward()`` those of the variables. candle: ``backprop::GradStore``."""

    def __init__(self, loss: GraphNode, nodes: dict[TensorId, GraphNode], wrap: Callable[[GraphNode], Tensor]) -> None:
        self._loss, self._nodes, self._wrap = loss, nodes, wrap

    def get(self, tensor: TensorBase) -> Tensor | None:
        """The gradient of a tensor, or ``None`` where no path leads to it; see ``explain``."""
        return self.get_id(_id("get", tensor))

    def get_id(self, id: TensorId) -> Tensor | None:
        """The gradient of the tensor with this id, or ``None``."""
        node = self._nodes.get(id)
        return None if node is None else self._wrap(node)

    def __getitem__(self, tensor: TensorBase) -> Tensor:
        gradient = self.get(tensor)
        if gradient is None:
            raise GradientNotFoundError(f"grads: no gradient for this tensor: {self.explain(tensor)}")
        return gradient

    def __contains__(self, tensor: TensorBase) -> bool:
        return _id("in", tensor) in self._nodes

    def __iter__(self) -> Iterator[TensorId]:
        return iter(self.get_ids())

    def __repr__(self) -> str:
        return f"GradStore of {len(self)} gradients"

    def __len__(self) -> int:
        return len(self._nodes)

    def get_ids(self) -> list[TensorId]:
        """The ids of the tensors that have a gradient."""
        return list(self._nodes)

    def insert(self, tensor: TensorBase, gradient: TensorBase) -> Tensor | None:
        """Put a gradient in place of a tensor's own, as clipping does, and return the one that was there.

        Raises ``ShapeMismatchBinaryOpError`` and ``DTypeMismatchError`` unless it is like the tensor.
        """
        id = _id("insert", tensor)
        _id("insert", gradient)
        if gradient.shape != tensor.shape:
            raise ShapeMismatchBinaryOpError("insert", tensor.shape, gradient.shape, "a gradient of the tensor's shape")
        if gradient.dtype is not tensor.dtype:
            raise DTypeMismatchError("insert", tensor.dtype, gradient.dtype)
        return self.insert_id(id, gradient)

    def insert_id(self, id: TensorId, gradient: TensorBase) -> Tensor | None:
        """As ``insert``, for the tensor with this id."""
        _id("insert_id", gradient)
        if not isinstance(id, TensorId):
            raise Error(f"insert_id: got {type(id).__name__}; takes a tensor's id()")
        earlier = self.get_id(id)
        self._nodes[id] = gradient._node
        return earlier

    def remove(self, tensor: TensorBase) -> Tensor | None:
        """Take a gradient out and return it."""
        gradient = self.get(tensor)
        self._nodes.pop(tensor.id(), None)
        return gradient

    def extend(self, other: GradStore) -> None:
        """Take over another store's gradients; where both have one, their sum."""
        if not isinstance(other, GradStore):
            raise Error(f"extend: got {type(other).__name__}; takes a GradStore")
        for id, node in other._nodes.items():
            own = self._nodes.get(id)
            self._nodes[id] = node if own is None else record(_add, (own, node))

    def explain(self, tensor: TensorBase) -> str:
        """Why a variable has no gradient here: where its path to the loss is cut."""
        if _id("explain", tensor) in self._nodes:
            return "it has a gradient"
        variable = tensor._node.variable
        if variable is None:
            return "the tensor is no variable; gradients are kept for Var only"
        return explain_missing(self._loss, variable)


def _id(op: str, tensor: object) -> TensorId:
    if not isinstance(tensor, TensorBase):
        raise Error(f"{op}: got {type(tensor).__name__}; takes a tensor")
    return tensor.id()


def backward(loss: TensorBase, wrap: Callable[[GraphNode], Tensor]) -> GradStore:
    """Gradients of ``loss`` for every variable it depends on, evaluated together with it; ``wrap`` names their type.

    Raises ``BackwardNotSupportedError`` where an operation has no gradient, and for a compiled function's results.
    """
    if not loss.track_op() and any(node.cut == COMPILED for node in topological_order([loss._node])):
        raise BackwardNotSupportedError("compile", "its results keep no operations; call backward() inside it")
    found = gradients(loss._node)
    if current_trace() is None:
        evaluate([loss._node, *found.values()])
        growth.after_backward(loss._node)
    return GradStore(loss._node, {TensorId(variable.id): node for variable, node in found.items()}, wrap)

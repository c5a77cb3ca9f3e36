"""``backward()`` and the gradients it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..error import GradientNotFoundError
from ..graph.differentiate import explain_missing, gradients
from ..graph.evaluate import evaluate
from ..graph.node import GraphNode, Variable, current_trace
from .base import TensorBase

if TYPE_CHECKING:
    from .eager import Tensor


class GradStore:
    """Gradients by variable. candle: ``candle_core::backprop::GradStore``."""

    def __init__(self, loss: GraphNode, nodes: dict[Variable, GraphNode], wrap: Callable[[GraphNode], Tensor]) -> None:
        self._loss, self._nodes, self._wrap = loss, nodes, wrap

    def get(self, tensor: TensorBase) -> Tensor | None:
        """The gradient of a variable, or ``None`` where no path leads to it."""
        variable = tensor._node.variable
        node = self._nodes.get(variable) if variable is not None else None
        return None if node is None else self._wrap(node)

    def __getitem__(self, tensor: TensorBase) -> Tensor:
        gradient = self.get(tensor)
        if gradient is None:
            raise GradientNotFoundError(f"grads: no gradient for this tensor: {self.explain(tensor)}")
        return gradient

    def __contains__(self, tensor: TensorBase) -> bool:
        return tensor._node.variable in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def get_ids(self) -> Iterator[Variable]:
        """The variables that have a gradient."""
        return iter(self._nodes)

    def insert(self, tensor: TensorBase, gradient: TensorBase) -> None:
        """Put a gradient in place of a variable's own, as clipping does."""
        variable = tensor._node.variable
        if variable is None:
            raise GradientNotFoundError("insert: got a tensor that is no variable; takes a Var")
        self._nodes[variable] = gradient._node

    def remove(self, tensor: TensorBase) -> Tensor | None:
        """Take a gradient out and return it."""
        gradient = self.get(tensor)
        if gradient is not None and tensor._node.variable is not None:
            del self._nodes[tensor._node.variable]
        return gradient

    def explain(self, tensor: TensorBase) -> str:
        """Why a variable has no gradient here: where its path to the loss is cut."""
        variable = tensor._node.variable
        if variable is None:
            return "the tensor is no variable; gradients are kept for Var only"
        if variable in self._nodes:
            return "it has a gradient"
        return explain_missing(self._loss, variable)


def backward(loss: TensorBase, wrap: Callable[[GraphNode], Tensor]) -> GradStore:
    """Gradients of ``loss`` for every variable it depends on, evaluated together with it; ``wrap`` names their type."""
    found = gradients(loss._node)
    if current_trace() is None:
        evaluate([loss._node, *found.values()])
    return GradStore(loss._node, found, wrap)

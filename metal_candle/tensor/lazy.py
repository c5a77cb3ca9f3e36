"""``LazyTensor``: a tensor that records, and computes when its value is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from .. import features
from ..device import DeviceLike
from ..dtype import DTypeLike
from ..error import ArgumentTypeError, Error
from ..graph.evaluate import evaluate
from ..graph.fold import LIMIT
from ..graph.node import GraphNode, topological_order
from ..graph.node_data import NodeId
from .arguments import expect_tensor
from .arguments import tensors as expect_tensors
from .base import TensorBase
from .construct import Constructors
from .eager import Tensor
from .grad_store import GradStore, backward
from .growth import growth

if TYPE_CHECKING:
    from ..graph.explain import Explanation
    from ..graph.graph import ComputationGraph
    from .evaluation import Evaluation

L = TypeVar("L", bound="LazyTensor")
_new = object.__new__


class LazyTensor(Constructors):
    """A recorded tensor: shape and dtype are known, nothing is computed before ``eval()``.

    What a variable still names then is a result of its own: it is computed by itself and kept, and not fused with what
    it is part of. Record an expression in a function, ``del`` what is not needed, or use ``compile``; ``explain()``
    names what is held.

    metal-candle: ``metal_candle::graph::LazyTensor``.
    """

    __slots__ = ("__weakref__", "_node")

    def __init__(self, data: Any, device: DeviceLike = None, dtype: DTypeLike | None = None) -> None:
        node = data if isinstance(data, GraphNode) else type(self).new(data, device, dtype)._node
        self._node = node

    @classmethod
    def _from_node(cls: type[L], node: GraphNode) -> L:
        features.require("graph")
        return cls(node)

    def _wrap(self: L, node: GraphNode) -> L:
        tensor = _new(type(self))
        tensor._node = node
        return tensor

    def _lift(self: L, other: TensorBase) -> L:
        if isinstance(other, type(self)):
            return other
        expect_tensor("operand", other)
        return type(self)(other._node)

    @classmethod
    def from_tensor(cls: type[L], tensor: TensorBase) -> L:
        """The start of a recording from a tensor; from a ``Var`` the link for gradients is kept."""
        features.require("graph")
        if not isinstance(tensor, TensorBase):
            raise Error(f"from_tensor: got {type(tensor).__name__}; takes a tensor, LazyTensor.new takes data")
        return cls(tensor._node)

    add_tensor_to_graph = from_tensor

    def eval(self) -> Tensor:
        """The computed value, as an eager tensor. The handle stays usable, a second call is free.

        Tensors on the way that somebody holds get their values too, which keeps them from being fused.
        """
        features.require("graph")
        evaluate([self._node])
        growth.now_and_then()
        return Tensor._from_node(self._node)

    def eval_async(self) -> Evaluation[Tensor]:
        """``eval()`` in another thread, begun when this returns: ``await`` it under asyncio, or ``.wait()`` for it.

        Where waiting ends early, by ``wait_for``'s timeout or because the task is cancelled, what has begun is computed
        to its end and the tensor keeps the value; what has not begun is taken back if nobody else waits for it. After
        ``.wait(timeout)`` it goes on either way.
        """
        from .executor import eval_async  # threads, futures and asyncio are for who asks for them

        return eval_async(self)

    def backward(self) -> GradStore:
        """Gradients of every variable this depends on; of a tensor with several elements, of its sum."""
        return backward(self, Tensor._from_node)

    def is_evaluated(self) -> bool:
        """Whether the value is there already."""
        return self._node.value is not None

    def node_id(self) -> NodeId:
        """The id of its node."""
        return NodeId(self._node.id)

    def graph_size(self) -> int:
        """Number of nodes it depends on, itself included; shared ones count once."""
        return len(topological_order([self._node]))

    def explain(self, limit: int | None = LIMIT) -> Explanation:
        """What ``eval()`` would do: the graph before and after rewriting, which rules apply and which do not and why,
        the kernels that would be chosen, FLOPs and bytes. Nothing is computed.

        Of a graph of more than ``limit`` nodes modules are one line each.
        """
        from ..graph.explain import explain  # a program that asks for no picture does not wait for what draws it

        return explain([self._node], limit)

    def to_dot(self, limit: int | None = LIMIT) -> str:
        """Its graph in Graphviz's language; see ``ComputationGraph.to_dot``."""
        return _graph_of(self).to_dot(limit)

    def to_mermaid(self, limit: int | None = LIMIT) -> str:
        """Its graph as a Mermaid flow chart; see ``ComputationGraph.to_mermaid``."""
        return _graph_of(self).to_mermaid(limit)

    def to_svg(self) -> str:
        """Its graph as a drawing; see ``ComputationGraph.to_svg``."""
        return _graph_of(self).to_svg()

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def __repr__(self) -> str:
        state = "evaluated" if self.is_evaluated() else "lazy"
        return (
            f"LazyTensor(node {self._node.id}: {self._node.operation.name()}, {list(self.shape)}, {self.dtype}, "
            f"{self.device}, {state}, graph of {self.graph_size()})"
        )

    # Printing must not evaluate.
    __str__ = __repr__


def _graph_of(tensor: LazyTensor) -> ComputationGraph:
    from ..graph.graph import ComputationGraph

    return ComputationGraph(tensor)


def eval_all(tensors: Iterable[TensorBase], *others: Any) -> list[Tensor]:
    """Evaluate several tensors, lazy, eager or variables, in one go; what they share is computed once.

    ``tensors`` is gone through once. Raises ``ArgumentTypeError`` for what is no list, or other iterable, of tensors.
    """
    features.require("graph")
    if others:
        raise ArgumentTypeError(f"eval_all: got {1 + len(others)} arguments; takes a list of tensors")
    listed = expect_tensors("eval_all", tensors)
    evaluate([tensor._node for tensor in listed])
    return [Tensor._from_node(tensor._node) for tensor in listed]

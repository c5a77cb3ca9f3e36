"""``ComputationGraph``: a view over outputs, to look at what they depend on and to build a graph by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Union

from ..constructors import New
from ..device import Device
from ..error import ArgumentTypeError, GraphNodeNotFoundError
from ..error.expect import a, expect, integer, listed, wrong
from ..error.text import described
from . import render
from .fold import LIMIT
from .node import GraphNode, NodeNumber, record, topological_order
from .node_data import NodeId
from .operation import Operation
from .svg import LIMIT as SVG_LIMIT
from .svg import svg

Handle = Union[GraphNode, NodeId, int]


class ComputationGraph(New):
    """What is reachable from some outputs. metal-candle: ``metal_candle::graph::ComputationGraph``.

    Takes a device, for an empty graph that grows by ``add_input`` and ``add_node``; tensors; or a list of
    them. It owns nothing: a graph lives as long as what is reachable from a tensor that somebody holds.
    """

    def __init__(self, of: Any = None, *others: Any) -> None:
        tensors: Sequence[Any] = [of, *others]
        if not others and (of is None or isinstance(of, (list, tuple, Device))):
            tensors = of if isinstance(of, (list, tuple)) else []
        for tensor in tensors:
            if not hasattr(tensor, "_node"):
                takes = "tensors" if others else "a device, tensors or a list of tensors"
                raise ArgumentTypeError(f"graph: got {described(tensor)}; takes {takes}")
        self._outputs: list[GraphNode] = [tensor._node for tensor in tensors]
        if isinstance(of, Device):
            self._device = of
        else:
            self._device = self._outputs[0].device if self._outputs else Device.default()

    @property
    def device(self) -> Device:
        """Where new nodes are computed."""
        return self._device

    def add_input(self, tensor: Any) -> GraphNode:
        """A tensor as a leaf of this graph; returns its handle. Raises ``ArgumentTypeError`` for what is no tensor."""
        if not hasattr(tensor, "_node"):
            raise wrong("add_input", tensor, "a tensor")
        node: GraphNode = tensor._node
        self._outputs.append(node)
        return node

    def add_node(self, operation: Operation, inputs: Iterable[Handle]) -> GraphNode:
        """Record an operation on nodes of this graph; returns its handle.

        Raises ``GraphNodeNotFoundError`` for an input that is not here, and what the operation raises for
        inputs that do not fit. Raises ``ArgumentTypeError`` for what is no operation or no list of nodes.
        """
        expect("add_node", operation, a(Operation))
        nodes = tuple(self.get_node(handle) for handle in listed("add_node", inputs, "a list of nodes", "inputs"))
        operation.check_arity(len(nodes))
        node = record(operation, nodes)
        self._outputs.append(node)
        return node

    def get_node(self, handle: Handle) -> GraphNode:
        """The node of a handle or an id. Raises ``GraphNodeNotFoundError``, ``ArgumentTypeError`` for what is none."""
        number = _number(handle)
        for node in self.nodes():
            if node.id == number:
                return node
        raise GraphNodeNotFoundError(int(number), len(self))

    get_node_mut = get_node

    def merge_from(self, other: ComputationGraph, handle: Handle) -> GraphNode:
        """Make a node of another graph an output of this one as well; nothing is copied. Raises as ``get_node``."""
        expect("merge_from", other, a(ComputationGraph))
        node = other.get_node(handle)
        self._outputs.append(node)
        return node

    def outputs(self) -> list[GraphNode]:
        """The nodes that no other node of this graph uses."""
        nodes = self.nodes()
        used = {source for node in nodes for source in node.inputs}
        return [node for node in nodes if node not in used]

    def topological_order(self, handle: Handle | None = None) -> list[GraphNode]:
        """The nodes that ``handle`` depends on, itself last, or all there are; dependencies come first."""
        return topological_order(self._outputs if handle is None else [self.get_node(handle)])

    def nodes(self) -> list[GraphNode]:
        """Every node, dependencies first."""
        return topological_order(self._outputs)

    def is_empty(self) -> bool:
        """Whether there is no node."""
        return not self._outputs

    def __len__(self) -> int:
        return len(self.nodes())

    def __contains__(self, handle: object) -> bool:
        number = handle.id if isinstance(handle, GraphNode) else handle
        return any(node.id == number for node in self.nodes())

    def explain(self, limit: int | None = LIMIT) -> str:
        """A line per node: id, operation with its parameters, shape, dtype, inputs, whether it has a value.

        Of a graph of more than ``limit`` nodes both ends, and a count of what it consists of.
        """
        return render.text(self.nodes(), limit)

    def to_dot(self, limit: int | None = LIMIT, fold: render.Fold = None) -> str:
        """The graph in Graphviz's language, modules as clusters.

        A graph of more than ``limit`` nodes is folded: modules become one box each, at the greatest depth that fits,
        and the middle becomes one box if there is still too much. ``fold`` is ``False`` for no folding by modules,
        or the depth: 1 for the outermost modules, 3 for "Decoder.layers.0". Raises ``Error`` for another ``fold``.
        """
        return render.dot(self.nodes(), limit, fold)

    def to_mermaid(self, limit: int | None = LIMIT, fold: render.Fold = None) -> str:
        """The graph as a Mermaid flow chart, which GitHub draws in Markdown; large ones as in ``to_dot``."""
        return render.mermaid(self.nodes(), limit, fold)

    def to_svg(self, limit: int | None = SVG_LIMIT, fold: render.Fold = None) -> str:
        """The graph as a drawing that needs no other program; large ones as in ``to_dot``."""
        return svg(self.nodes(), limit, fold)

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def __repr__(self) -> str:
        return f"ComputationGraph({len(self)} nodes, {self._device})"


def _number(handle: Handle) -> NodeNumber:
    """A node's id. Raises ``ArgumentTypeError`` for what is no handle."""
    if isinstance(handle, GraphNode):
        return handle.id
    try:
        return integer("graph", "handle", handle)
    except ArgumentTypeError:
        raise wrong("graph", handle, "a node or its id", "handle") from None

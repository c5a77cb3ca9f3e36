"""Rewriting before differentiation: gradients pass through fused operations, by the derivatives these bring."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .node import GraphNode, layout_of, record
from .operations.structure import Contiguous
from .plans import rewritten
from .structure import lock, survey
from .term import Term


def fuse(outputs: Sequence[GraphNode]) -> None:
    """Rewrite what ``outputs`` depend on and is not evaluated yet, in place.

    Nodes that somebody holds stay the nodes they are, with another operation where a rule gave them one; so what is
    evaluated later shares what the gradient computes.
    """
    structure = survey(outputs, any_leaf=True)
    graph = rewritten(structure)
    nodes: dict[Term, GraphNode] = {}
    held = {structure.nodes[place] for place in structure.roots}
    changes: list[tuple[GraphNode, GraphNode]] = []
    for term in graph.order:
        node = None if term.place is None else structure.nodes[term.place]
        if term.operation is None:
            assert node is not None
            nodes[term] = node
            continue
        inputs = tuple([nodes[source] for source in term.inputs])
        if node is not None and node.operation is term.operation and _same(node.inputs, inputs):
            nodes[term] = node
            continue
        made = record(term.operation, inputs, term.device, term.meta)
        made.id = _between(inputs) if node is None else node.id  # type: ignore[assignment]
        if node is not None and node in held:
            changes.append((node, made))
            made = node
        nodes[term] = made
    for place, root in zip(structure.roots, graph.roots):
        node = structure.nodes[place]
        if nodes[root] is not node and node.value is None:
            # Two that somebody holds turned out to be one.
            changes.append((node, record(Contiguous(), (nodes[root],), node.device, node.meta)))
    with lock:
        for node, made in changes:
            _become(node, made)


def _same(some: tuple[GraphNode, ...], others: tuple[GraphNode, ...]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others))


def _become(node: GraphNode, made: GraphNode) -> None:
    if node.value is not None:  # another thread was faster
        return
    if node.operation.is_view:
        layout_of(node)
    node.operation, node.inputs = made.operation, made.inputs


def _between(inputs: Sequence[GraphNode]) -> float:
    """An id after those of the inputs and before that of any node recorded after them."""
    last = max(node.id for node in inputs)
    return (last + math.floor(last) + 1) / 2

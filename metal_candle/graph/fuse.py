"""Rewriting before differentiation: gradients pass through fused operations, by the derivatives these bring."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fractions import Fraction

from .node import GraphNode, NodeNumber, current_trace, layout_of, record
from .operation import Meta
from .operations.structure import Contiguous
from .plans import planned
from .structure import Structure
from .term import Term, TermGraph


def fuse(outputs: Sequence[GraphNode]) -> None:
    """Rewrite what ``outputs`` depend on and is not evaluated yet, in place. The caller holds ``structure.lock``.

    Nodes that somebody holds stay the nodes they are, with another operation where a rule gave them one; so what is
    evaluated later shares what the gradient computes.
    """
    structure, known = planned(outputs, any_leaf=True)
    graph = known.graph
    if not known.rules:
        return
    trace = current_trace()
    if trace is not None:
        trace.rules.update(known.rules)
    nodes, changes = nodes_of(structure, graph, {structure.nodes[place] for place in structure.roots})
    for place, root in zip(structure.roots, graph.roots):
        node = structure.nodes[place]
        # Two that somebody holds turned out to be one. Of several results each computes its own.
        if nodes[root] is not node and node.value is None and isinstance(node.meta, Meta):
            changes.append((node, record(Contiguous(), (nodes[root],), node.device, node.meta)))
    changes = [(node, made) for node, made in changes if node.value is None]
    for node, _ in changes:
        if isinstance(node.meta, Meta):
            node.layout = layout_of(node)  # as it was recorded
    for node, made in changes:
        node.operation, node.inputs = made.operation, made.inputs


def nodes_of(
    structure: Structure, graph: TermGraph, held: Collection[GraphNode] = ()
) -> tuple[dict[Term, GraphNode], list[tuple[GraphNode, GraphNode]]]:
    """A node for each term: the one it was where nothing changed, else a new one in its place.

    Those that are ``held`` are used as they are; what each of them has to become is returned beside.
    """
    nodes: dict[Term, GraphNode] = {}
    changes: list[tuple[GraphNode, GraphNode]] = []
    limits = _limits(structure, graph)
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
        if node is None:
            made.id = _between(inputs, limits.get(term))
        else:
            made.id, made.scope = node.id, node.scope
            if node in held:
                changes.append((node, made))
                made = node
        nodes[term] = made
    return nodes, changes


def _same(some: tuple[GraphNode, ...], others: tuple[GraphNode, ...]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others))


def _limits(structure: Structure, graph: TermGraph) -> dict[Term, NodeNumber]:
    """For terms that are no node's: the least id of the nodes that use them, themselves or further on."""
    limits: dict[Term, NodeNumber] = {}
    for term in reversed(graph.order):
        limit = limits.get(term) if term.place is None else structure.nodes[term.place].id
        if limit is not None:
            for source in term.inputs:
                if source.place is None:
                    limits[source] = min(limits.get(source, limit), limit)
    return limits


def _between(inputs: Sequence[GraphNode], limit: NodeNumber | None) -> Fraction:
    """An id after those of the inputs, before ``limit`` and before that of any node recorded after the inputs."""
    last = max(node.id for node in inputs)
    following: NodeNumber = math.floor(last) + 1
    return Fraction(last + (following if limit is None else min(following, limit))) / 2

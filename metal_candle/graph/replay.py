"""A recorded piece of graph, computed again and again for other values of its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .node import GraphNode
from .operation import Meta, Metas
from .plan import Plan
from .plans import apply_rules, plan_for
from .rewrite import Log
from .spread import PartedPlan
from .structure import lock, survey
from .term import TermGraph, terms_of


class Replay:
    """What computes ``outputs`` from ``inputs``; leaves that are no input keep the values they have now."""

    def __init__(self, outputs: Sequence[GraphNode], inputs: Sequence[GraphNode] = ()) -> None:
        self._log = Log()
        self._plan: Plan | PartedPlan | None = None
        self.size = 0
        wanted = list(dict.fromkeys(outputs))
        if not wanted:
            return
        with lock:
            structure = survey(wanted, frozenset(inputs))
            self._before, graph = terms_of(structure), terms_of(structure)
        self._graph = apply_rules(graph, self._log)
        self._plan = plan_for(self._graph, structure.device)
        self.size = len(self._plan.steps)
        places = {structure.nodes[place]: i for i, place in enumerate(structure.leaves)}
        self._values = list(structure.values)
        # An argument that nothing depends on has no place.
        self._inputs = [places.get(node) for node in inputs]
        found = {structure.nodes[place]: i for i, place in enumerate(structure.roots)}
        self._outputs = [found[node] for node in outputs]

    def run(self, values: Sequence[Any]) -> list[Any]:
        """The outputs' arrays, not yet evaluated by MLX, for these values of the inputs."""
        if self._plan is None:
            return []
        leaves = self._values.copy()
        for place, value in zip(self._inputs, values):
            if place is not None:
                leaves[place] = value
        results = self._plan.run(leaves)
        return [results[i] for i in self._outputs]

    def rules(self) -> Counter[str]:
        """How often each rule rewrote it."""
        return self._log.counted()

    def constants(self) -> int:
        """How many leaves keep the values they have now."""
        return 0 if self._plan is None else len(self._values) - sum(place is not None for place in set(self._inputs))

    def difference(self, other: Replay) -> str | None:
        """What this one does otherwise than ``other``; ``None`` if both do the same, to whatever shapes."""
        if self._plan is None or other._plan is None:
            return None if self._plan is other._plan else "one of them computes nothing"
        if self._inputs != other._inputs or self._outputs != other._outputs:
            return "arguments and results are connected otherwise"
        for graph, others in ((self._before, other._before), (self._graph, other._graph)):
            different = _first_difference(graph, others)
            if different is not None:
                return different
        given = set(self._inputs)
        for i, (mine, its) in enumerate(zip(self._values, other._values)):
            if i not in given and mine is not its and not _equal(mine, its):
                return f"it holds a tensor of shape {list(mine.shape)}, or another of {list(its.shape)}"
        return None

    def fits(self, metas: Sequence[Meta]) -> bool:
        """Whether it computes the same for inputs of these shapes as before rewriting, by the operations' rules.

        Raises what ``infer`` raises where an operation does not take what comes out.
        """
        if self._plan is None:
            return True
        return _inferred(self._before, self._inputs, metas) == _inferred(self._graph, self._inputs, metas)


def _first_difference(graph: TermGraph, other: TermGraph) -> str | None:
    if len(graph.order) != len(other.order):
        return f"{len(graph.order)} operations for one shape, {len(other.order)} for another"
    places = {term: i for i, term in enumerate(graph.order)}
    others = {term: i for i, term in enumerate(other.order)}
    for mine, its in zip(graph.order, other.order):
        if mine.operation != its.operation:
            one, two = (term.operation.describe() if term.operation else "a leaf" for term in (mine, its))
            return f"{one} for one shape, {two} for another"
        if [places[source] for source in mine.inputs] != [others[source] for source in its.inputs]:
            return "operations are connected otherwise"
    return None


def _equal(mine: Any, its: Any) -> bool:
    return mine.shape == its.shape and mine.dtype == its.dtype and bool(mx.array_equal(mine, its, equal_nan=True))


def _inferred(graph: TermGraph, inputs: Sequence[int | None], metas: Sequence[Meta]) -> list[Metas]:
    found: dict[Any, Metas] = {leaf: leaf.meta for leaf in graph.leaves}
    for place, meta in zip(inputs, metas):
        if place is not None:
            found[graph.leaves[place]] = meta
    for term in graph.order:
        if term.operation is not None:
            operation = term.operation
            found[term] = operation.infer(*[found[source] for source in term.inputs])
    return [found[root] for root in graph.roots]

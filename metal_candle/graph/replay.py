"""A recorded piece of graph, computed again and again for other values of its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .node import GraphNode
from .plan import Plan
from .plans import apply_rules, plan_for
from .rewrite import Log
from .spread import PartedPlan
from .structure import lock, survey
from .term import Term, TermGraph, terms_of


class Replay:
    """What computes ``outputs`` from ``inputs``; leaves that are no input keep the values they have now.

    As a ``part`` of a larger computation it is one plan, of which nothing begins by itself.
    """

    def __init__(self, outputs: Sequence[GraphNode], inputs: Sequence[GraphNode] = (), part: bool = False) -> None:
        self._log, self._part = Log(), part
        self._plan: Plan | PartedPlan | None = None
        self._graph: TermGraph | None = None
        wanted = list(dict.fromkeys(outputs))
        if not wanted:
            return
        with lock:
            structure = survey(wanted, frozenset(inputs))
            self._before, graph = terms_of(structure), terms_of(structure)
        self._graph = apply_rules(graph, self._log)
        self._device = structure.device
        places = {structure.nodes[place]: i for i, place in enumerate(structure.leaves)}
        # An argument that nothing depends on has no place.
        self._inputs = [places.get(node) for node in inputs]
        # What an input has now is not kept: a variable's value would be, for as long as this is replayed.
        given = set(self._inputs)
        self._values = [None if place in given else value for place, value in enumerate(structure.values)]
        found = {structure.nodes[place]: i for i, place in enumerate(structure.roots)}
        self._outputs = [found[node] for node in outputs]

    def run(self, values: Sequence[Any]) -> list[Any]:
        """The outputs' arrays, not yet evaluated by MLX, for these values of the inputs."""
        if self._graph is None:
            return []
        leaves = self._values.copy()
        for place, value in zip(self._inputs, values):
            if place is not None:
                leaves[place] = value
        results = self._planned(self._graph).run(leaves)
        return [results[i] for i in self._outputs]

    def _planned(self, graph: TermGraph) -> Plan | PartedPlan:
        # When it is asked for: one that is only compared with another is never planned.
        if self._plan is None:
            self._plan = Plan(graph, self._device) if self._part else plan_for(graph, self._device)
        return self._plan

    @property
    def size(self) -> int:
        """How many MLX calls it makes."""
        return 0 if self._graph is None else len(self._planned(self._graph).steps)

    def rules(self) -> Counter[str]:
        """How often each rule rewrote it."""
        return self._log.counted()

    def constants(self) -> list[Any]:
        """The arrays of the leaves that keep the values they have now."""
        if self._graph is None:
            return []
        given = set(self._inputs)
        return [value for place, value in enumerate(self._values) if place not in given]

    def difference(self, other: Replay) -> str | None:
        """What this one does otherwise than ``other``; ``None`` if both do the same, to whatever shapes."""
        if self._graph is None or other._graph is None:
            return None if self._graph is other._graph else "one of them computes nothing"
        for graph, others in ((self._before, other._before), (self._graph, other._graph)):
            different = _first_difference(graph, others)
            if different is not None:
                return different
        if self._inputs != other._inputs or self._outputs != other._outputs:
            return "arguments and results are connected otherwise"
        for mine, its in zip(self.constants(), other.constants()):
            if mine is not its and not _same_bits(mine, its):
                return _other_constant(mine, its)
        return None


def _first_difference(graph: TermGraph, other: TermGraph) -> str | None:
    for mine, its in zip(graph.order, other.order):
        if mine.operation != its.operation:
            one, two = (term.operation.describe() if term.operation else "a leaf" for term in (mine, its))
            return f"{one} for one shape, {two} for another"
    if len(graph.order) != len(other.order):
        return f"{len(graph.order)} operations for one shape, {len(other.order)} for another"
    places = {term: i for i, term in enumerate(graph.order)}
    others = {term: i for i, term in enumerate(other.order)}
    for mine, its in zip(graph.order, other.order):
        if [places[source] for source in mine.inputs] != [others[source] for source in its.inputs]:
            return "operations are connected otherwise"
        if mine.device != its.device or (mine.operation is not None and _call(mine) != _call(its)):
            return f"{mine.operation.name() if mine.operation else 'a leaf'} is computed otherwise"
    for terms, its_terms in ((graph.leaves, other.leaves), (graph.roots, other.roots)):
        if [places.get(term) for term in terms] != [others.get(term) for term in its_terms]:
            return "arguments and results are connected otherwise"
    return None


def _call(term: Term) -> Any:
    """What a plan calls for it, without the operation that it is a method of."""
    call = term.operation.lowering(*[source.meta for source in term.inputs])  # type: ignore[union-attr]
    return getattr(call, "__func__", call)


_BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


def _same_bits(mine: mx.array, its: mx.array) -> bool:
    # Zeros of both signs are equal, and a NaN is not equal to itself.
    if mine.shape != its.shape or mine.dtype != its.dtype:
        return False
    bits = _BITS[mine.itemsize]
    with mx.stream(mx.cpu):  # float64 too
        return bool(mx.array_equal(mine.view(bits), its.view(bits)))


def _other_constant(mine: mx.array, its: mx.array) -> str:
    if mine.size == its.size == 1:
        return f"the number {mine.item()} for one shape, {its.item()} for another"
    if mine.shape != its.shape:
        return f"it holds a tensor {list(mine.shape)} for one shape, {list(its.shape)} for another"
    return f"it holds a tensor {list(mine.shape)} of other values for another shape"

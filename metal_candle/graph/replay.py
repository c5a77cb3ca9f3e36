"""A recorded piece of graph, computed again and again for other values of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .node import GraphNode
from .plan import Plan
from .plans import apply_rules, planned
from .rewrite import Log
from .spread import SpreadPlan
from .structure import survey
from .term import terms_of


class Replay:
    """What computes ``outputs`` from ``inputs``; leaves that are no input keep the values they have now."""

    def __init__(self, outputs: Sequence[GraphNode], inputs: Sequence[GraphNode] = ()) -> None:
        self.log = Log()
        self._count = len(inputs)
        wanted = list(dict.fromkeys(outputs))
        if not wanted:
            self.size, self._plan = 0, None
            return
        structure = survey(wanted, frozenset(inputs))
        graph = apply_rules(terms_of(structure), self.log)
        self._plan: Plan | SpreadPlan | None = planned(graph, structure.device)
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

"""Contracting a graph by labels, so that what comes out still has no cycles; and an order of the result."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

_PATIENCE = 300
"""A search for a cycle that meets more boxes than this counts as having found one: time stays linear in the size."""


def contract(
    inputs: Sequence[Sequence[int]], labels: Sequence[Hashable | None], most: float = math.inf
) -> list[int] | None:
    """The box of each item, or ``None`` if there would be more than ``most`` boxes.

    Items of one label share a box; those without a label have one each. ``inputs`` are the items that each one uses,
    all before it. Where a single box would close a cycle, because what is computed from it comes back to it, a label
    has several boxes. An item without inputs is in the first box that uses it, if that has its label.
    """
    boxes = _Boxes()
    box_of = [-1] * len(inputs)
    latest: dict[Hashable, int] = {}
    users: dict[int, list[int]] = defaultdict(list)
    for item, sources in enumerate(inputs):
        for source in sources:
            if not inputs[source]:
                users[source].append(item)
        if not sources:
            continue
        given = {box_of[source] for source in sources if inputs[source]}
        label = labels[item]
        box = latest.get(label) if label is not None else None
        if box is None or not boxes.connect(given - {box}, box):
            box = boxes.add(given)
            if box >= most:
                return None
            if label is not None:
                latest[label] = box
        box_of[item] = box
    label_of = {box_of[item]: labels[item] for item in range(len(inputs)) if inputs[item]}
    for item, sources in enumerate(inputs):
        if not sources:
            # Its edges go from the first of these to later ones, hence close no cycle.
            first = min((box_of[user] for user in users[item]), key=boxes.place.__getitem__, default=None)
            fits = first is not None and labels[item] is not None and label_of[first] == labels[item]
            box_of[item] = first if fits and first is not None else boxes.add(())
    return box_of if len(boxes.place) <= most else None


class _Boxes:
    """A graph without cycles that grows, with each box's place in a topological order.

    The order is repaired where an edge contradicts it: Pearce and Kelly 2006, "A dynamic topological sort algorithm
    for directed acyclic graphs", https://doi.org/10.1145/1187436.1210590.
    """

    def __init__(self) -> None:
        self.sources: list[set[int]] = []
        self.targets: list[set[int]] = []
        self.place: list[int] = []

    def add(self, sources: Iterable[int]) -> int:
        """A new box that uses ``sources``, last in the order."""
        box = len(self.place)
        self.place.append(box)
        self.sources.append(set(sources))
        self.targets.append(set())
        for source in self.sources[box]:
            self.targets[source].add(box)
        return box

    def connect(self, sources: set[int], box: int) -> bool:
        """Let ``box`` use ``sources`` as well, unless one of them depends on it; says whether it was done."""
        place, first = self.place, self.place[box]
        late = [source for source in sources if place[source] > first]
        if late:
            last = max(place[source] for source in late)
            after = self._reach([box], self.targets, lambda other: place[other] <= last)
            if after is None or not after.isdisjoint(late):
                return False
            before = self._reach(late, self.sources, lambda other: place[other] >= first)
            if before is None:
                return False
            moved = [*sorted(before, key=place.__getitem__), *sorted(after, key=place.__getitem__)]
            for other, where in zip(moved, sorted(place[other] for other in moved)):
                place[other] = where
        self.sources[box] |= sources
        for source in sources:
            self.targets[source].add(box)
        return True

    @staticmethod
    def _reach(start: list[int], along: list[set[int]], within: Callable[[int], bool]) -> set[int] | None:
        seen, stack = set(start), list(start)
        while stack:
            if len(seen) > _PATIENCE:
                return None
            for other in along[stack.pop()]:
                if other not in seen and within(other):
                    seen.add(other)
                    stack.append(other)
        return seen


def in_order(count: int, edges: Iterable[tuple[int, int]], key: Sequence[int]) -> list[int]:
    """0 to ``count`` - 1 so that every edge points forward; of those that are free, the smallest ``key`` first."""
    targets: list[list[int]] = [[] for _ in range(count)]
    waiting = [0] * count
    for source, target in edges:
        targets[source].append(target)
        waiting[target] += 1
    free = [(key[i], i) for i in range(count) if not waiting[i]]
    heapq.heapify(free)
    order = []
    while free:
        _, i = heapq.heappop(free)
        order.append(i)
        for target in targets[i]:
            waiting[target] -= 1
            if not waiting[target]:
                heapq.heappush(free, (key[target], target))
    return order

"""Where to draw the boxes of a graph: in rows, every edge downward, few crossings, edges as straight as may be.

The steps are those of Sugiyama, Tagawa and Toda 1981, "Methods for visual understanding of hierarchical system
structures", https://doi.org/10.1109/TSMC.1981.4308636: rows by longest path, places where long edges pass a row,
an order within each row by barycentres, then coordinates.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

_SWEEPS, _WORK = 6, 30_000
"""How often all is improved; less often where places times sweeps would be more than ``_WORK``."""
_APART = 26.0
_PASSING = 12.0
_BETWEEN = 34.0
_STEEP = 0.12
"""How much further apart two rows are for each unit that the widest edge between them goes sideways."""


@dataclass(frozen=True)
class Wire:
    """A piece of an edge from one row to the next, and whether it ends at a box (else where an edge passes)."""

    start: tuple[float, float]
    end: tuple[float, float]
    passes_to: float
    """How far down it goes on, straight, through the row where it ends."""
    arrives: bool


@dataclass(frozen=True)
class Placed:
    """Centres of the boxes, the wires, and the extent of all, which begins at (0, 0)."""

    centres: list[tuple[float, float]]
    wires: list[Wire]
    width: float
    height: float


@dataclass
class _Rows:
    """Vertices by row; those from ``boxes`` on are places where a long edge passes. All edges join neighbours."""

    boxes: int
    rows: list[list[int]]
    above: list[list[int]] = field(default_factory=list)
    below: list[list[int]] = field(default_factory=list)


def arrange(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> Placed:
    """Lay out boxes of given width and height; every edge must lead to a later box."""
    if not sizes:
        return Placed([], [], 0.0, 0.0)
    edges = list(dict.fromkeys(edges))
    levels = _levels(len(sizes), edges)
    graph = _with_passages(len(sizes), levels, edges)
    sweeps = max(1, min(_SWEEPS, _WORK // len(graph.above)))
    _order(graph, sweeps)
    widths = [width for width, _ in sizes] + [_PASSING] * (len(graph.above) - len(sizes))
    x = _coordinates(graph, widths, sweeps)
    return _wired(graph, x, widths, sizes)


def _levels(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The row of each box: below all it uses; what only feeds others, right above the first of them."""
    sources: list[list[int]] = [[] for _ in range(count)]
    targets: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges:
        sources[target].append(source)
        targets[source].append(target)
    levels = [0] * count
    for box in range(count):
        levels[box] = max((levels[source] + 1 for source in sources[box]), default=0)
    for box in reversed(range(count)):
        if targets[box] and len(sources[box]) <= len(targets[box]):
            levels[box] = min(levels[target] for target in targets[box]) - 1
    return levels


def _with_passages(count: int, levels: Sequence[int], edges: Sequence[tuple[int, int]]) -> _Rows:
    """Rows in which every edge joins neighbours; all long edges of one box share a place in each row."""
    graph = _Rows(count, [[] for _ in range(max(levels) + 1)], [[] for _ in range(count)], [[] for _ in range(count)])
    for box, level in enumerate(levels):
        graph.rows[level].append(box)
    passages: dict[tuple[int, int], int] = {}
    for source, target in edges:
        last = source
        for level in range(levels[source] + 1, levels[target]):
            place = passages.get((source, level))
            if place is None:
                place = passages[source, level] = len(graph.above)
                graph.above.append([last])
                graph.below.append([])
                graph.below[last].append(place)
                graph.rows[level].append(place)
            last = place
        graph.below[last].append(target)
        graph.above[target].append(last)
    return graph


def _order(graph: _Rows, sweeps: int) -> None:
    """Sort each row by the mean place of its neighbours, down and up in turn; the order with least crossings stays."""
    place = [0] * len(graph.above)
    for row in graph.rows:
        for i, vertex in enumerate(row):
            place[vertex] = i
    best, fewest = [list(row) for row in graph.rows], _crossings(graph, place)
    for sweep in range(2 * sweeps):
        if not fewest:
            break
        beside, rows = (graph.below, graph.rows[::-1]) if sweep % 2 else (graph.above, graph.rows)
        for row in rows:
            keys = {v: sum(place[n] for n in beside[v]) / len(beside[v]) if beside[v] else place[v] for v in row}
            row.sort(key=keys.__getitem__)
            for i, vertex in enumerate(row):
                place[vertex] = i
        crossings = _crossings(graph, place)
        if crossings < fewest:
            best, fewest = [list(row) for row in graph.rows], crossings
    graph.rows[:] = best


def _crossings(graph: _Rows, place: Sequence[int]) -> int:
    """How many pairs of edges cross."""
    total = 0
    for row in graph.rows:
        ends: list[int] = []
        for vertex in row:
            reached = sorted(place[target] for target in graph.below[vertex])
            for end in reached:
                total += len(ends) - bisect_right(ends, end)
            for end in reached:
                insort(ends, end)
    return total


def _coordinates(graph: _Rows, widths: Sequence[float], sweeps: int) -> list[float]:
    """Centres along the rows: as near to the neighbours' as the order and the widths allow."""
    x = [0.0] * len(widths)
    for row in graph.rows:
        at = 0.0
        for vertex in row:
            x[vertex] = at + widths[vertex] / 2
            at += widths[vertex] + _APART
        for vertex in row:
            x[vertex] -= at / 2
    # Down and up each box follows its most important neighbours alone, so that nothing drifts; then all of them.
    above, below = ([_heaviest(graph, v, side[v]) for v in range(len(x))] for side in (graph.above, graph.below))
    both = [[(n, _weight(graph, v, n)) for n in graph.above[v] + graph.below[v]] for v in range(len(x))]
    for beside, upward in [(above, False), (below, True)] * sweeps + [(both, False), (both, True)] * sweeps:
        for row in reversed(graph.rows) if upward else graph.rows:
            wanted, weights = [], []
            for vertex in row:
                weight = sum(share for _, share in beside[vertex])
                pull = sum(share * x[other] for other, share in beside[vertex])
                wanted.append(pull / weight if weight else x[vertex])
                weights.append(weight or 0.1)
            for vertex, where in zip(row, _apart(wanted, weights, [widths[vertex] for vertex in row])):
                x[vertex] = where
    _straighten(graph, x, widths)
    return x


def _straighten(graph: _Rows, x: list[float], widths: Sequence[float]) -> None:
    """Let each long edge run on one line for as many rows as the boxes and edges beside it leave room."""
    room: dict[int, tuple[int | None, int | None]] = {}
    for row in graph.rows:
        for i, vertex in enumerate(row):
            room[vertex] = (row[i - 1] if i else None, row[i + 1] if i + 1 < len(row) else None)

    def bounds(vertex: int) -> tuple[float, float]:
        left, right = room[vertex]
        low = -math.inf if left is None else x[left] + (widths[left] + widths[vertex]) / 2 + _APART
        return low, math.inf if right is None else x[right] - (widths[right] + widths[vertex]) / 2 - _APART

    def settle(run: list[int], low: float, high: float) -> None:
        where = min(max(sum(x[vertex] for vertex in run) / len(run), low), high)
        for vertex in run:
            x[vertex] = where

    for box in range(graph.boxes):
        run: list[int] = []
        low, high = -math.inf, math.inf
        passage = next((other for other in graph.below[box] if other >= graph.boxes), None)
        while passage is not None:
            least, most = bounds(passage)
            if run and max(low, least) > min(high, most):
                settle(run, low, high)
                run, low, high = [], -math.inf, math.inf
            run.append(passage)
            low, high = max(low, least), min(high, most)
            passage = next((other for other in graph.below[passage] if other >= graph.boxes), None)
        if run:
            settle(run, low, high)


def _heaviest(graph: _Rows, vertex: int, others: Sequence[int]) -> list[tuple[int, float]]:
    weights = [_weight(graph, vertex, other) for other in others]
    return [(other, weight) for other, weight in zip(others, weights) if weight == max(weights)]


def _weight(graph: _Rows, one: int, other: int) -> float:
    """How straight an edge should be: most where it passes, then from step to step, least from a leaf."""
    if one >= graph.boxes or other >= graph.boxes:
        return 16.0 if one >= graph.boxes and other >= graph.boxes else 1.0
    return 4.0 if graph.above[one] and graph.above[other] else 0.5


def _apart(wanted: Sequence[float], weights: Sequence[float], widths: Sequence[float]) -> list[float]:
    """The centres nearest to the wanted ones, in weighted squares, that keep the order and do not overlap.

    Without the distances between neighbours this is isotonic regression; neighbours that collide are pooled.
    """
    offsets, at = [], 0.0
    for i, width in enumerate(widths):
        at += (width + widths[i - 1]) / 2 + _APART if i else 0.0
        offsets.append(at)
    pools: list[tuple[float, float, int]] = []  # sum of weighted wishes, of weights, how many
    for wish, weight, offset in zip(wanted, weights, offsets):
        pool = (weight * (wish - offset), weight, 1)
        while pools and pools[-1][0] * pool[1] >= pool[0] * pools[-1][1]:
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2])
        pools.append(pool)
    bases = [total / weight for total, weight, count in pools for _ in range(count)]
    return [base + offset for base, offset in zip(bases, offsets)]


def _wired(graph: _Rows, x: list[float], widths: Sequence[float], sizes: Sequence[tuple[float, float]]) -> Placed:
    """Heights, and the wires between the rows."""
    left = min(x[v] - widths[v] / 2 for v in range(len(x)))
    right = max(x[v] + widths[v] / 2 for v in range(len(x)))
    x = [at - left for at in x]
    tops, bottoms, y = [], [], 0.0
    for row in graph.rows:
        tall = max((sizes[v][1] for v in row if v < graph.boxes), default=0.0)
        tops.append(y)
        bottoms.append(y + tall)
        aside = max((abs(x[v] - x[target]) for v in row for target in graph.below[v]), default=0.0)
        y += tall + _BETWEEN + min(_STEEP * aside, 2 * _BETWEEN)
    row_of = {vertex: i for i, row in enumerate(graph.rows) for vertex in row}
    wires = []
    for i, row in enumerate(graph.rows[1:], 1):
        for vertex in row:
            arrives = vertex < graph.boxes
            sources = sorted(graph.above[vertex], key=lambda v: (x[v], v))
            gap = min(14.0, 0.7 * widths[vertex] / max(1, len(sources)))
            for k, source in enumerate(sources):
                middle = (tops[i] + bottoms[i]) / 2
                top = middle - sizes[vertex][1] / 2 if arrives else tops[i]
                start = bottoms[i - 1]
                if source < graph.boxes:
                    start = (tops[i - 1] + bottoms[i - 1] + sizes[source][1]) / 2
                end = x[vertex] + (k - (len(sources) - 1) / 2) * gap
                wires.append(Wire((x[source], start), (end, top), top if arrives else bottoms[i], arrives))
    middles = [(tops[row_of[v]] + bottoms[row_of[v]]) / 2 for v in range(graph.boxes)]
    return Placed(list(zip(x, middles)), wires, right - left, bottoms[-1])

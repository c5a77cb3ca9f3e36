"""Large graphs made small enough to look at: modules as one box each, then the middle as one box."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..error import Error
from .box import Box
from .contract import contract, in_order
from .node import GraphNode

LIMIT = 400
"""A graph of more nodes is folded."""
_ENDS = 20


@dataclass(frozen=True)
class Folded:
    """A graph of boxes: in topological order, with edges by index; parallel ones between two nodes are kept."""

    nodes: Sequence[GraphNode]
    boxes: list[Box]
    edges: list[tuple[int, int]]


def fold(nodes: Sequence[GraphNode], limit: int | None = LIMIT, fold: bool | int | None = None) -> Folded:
    """Boxes of nodes that come with dependencies first.

    ``fold`` is the depth of the modules that become one box each: 1 for the outermost, 3 for "Decoder.layers.0";
    what was recorded further out stays as it is. ``None`` is the greatest depth at which no more than ``limit``
    boxes are left, or 1; and no folding for a graph that fits or has no modules. ``False`` is no folding.
    If that leaves more than ``limit`` boxes, those between the first and the last become one.

    Raises ``Error`` for another ``fold`` and for a ``limit`` below 1.
    """
    if fold is True or (fold is not None and fold is not False and (not isinstance(fold, int) or fold < 1)):
        raise Error(f"graph: got fold={fold!r}; takes None, False or a depth of modules from 1")
    if limit is not None and limit < 1:
        raise Error(f"graph: got limit={limit}; takes None or a number of nodes from 1")
    folded = _plain(nodes)
    if fold is None:
        folded = _fitting(folded, limit)
    elif fold:
        folded = _by_module(folded, _scopes(nodes), int(fold)) or folded
    return folded if limit is None or len(folded.boxes) <= limit else _ends(folded, limit)


def _plain(nodes: Sequence[GraphNode]) -> Folded:
    index = {node: i for i, node in enumerate(nodes)}
    root = _root(node.scope for node in nodes if node.scope)
    # A node that has its value may be listed without what it was computed from.
    shown = [tuple(source for source in node.inputs if source in index) for node in nodes]
    boxes = [Box("node", (node,), node.scope, (node,), inputs, root=root) for node, inputs in zip(nodes, shown)]
    return Folded(nodes, boxes, [(index[source], i) for i, inputs in enumerate(shown) for source in inputs])


def _fitting(plain: Folded, limit: int | None) -> Folded:
    """Folded at the greatest depth that fits, if it does not fit already."""
    if limit is None or len(plain.nodes) <= limit:
        return plain
    scopes = _scopes(plain.nodes)
    for depth in range(max(map(len, scopes), default=0), 0, -1):
        labels = {scope[:depth] for scope in scopes if len(scope) >= depth}
        # Splitting can only add boxes to these.
        if depth == 1 or len(labels) + sum(len(scope) < depth for scope in scopes) <= limit:
            folded = _by_module(plain, scopes, depth, most=limit if depth > 1 else math.inf)
            if folded is not None:
                return folded
    return plain


def _scopes(nodes: Sequence[GraphNode]) -> list[tuple[str, ...]]:
    """The path of each node's module. A leaf belongs to the module around all that use it: a weight to its layer."""
    paths = [tuple(node.scope.split(".")) if node.scope else () for node in nodes]
    index = {node: i for i, node in enumerate(nodes)}
    shared: dict[int, tuple[str, ...]] = {}
    for node, path in zip(nodes, paths):
        for source in node.inputs:
            if not source.inputs:
                i = index[source]
                shared[i] = common((shared[i], path)) if i in shared else path
    for i, path in shared.items():
        paths[i] = path
    return paths


def _by_module(plain: Folded, scopes: Sequence[tuple[str, ...]], depth: int, most: float = math.inf) -> Folded | None:
    """With the modules of a depth as boxes; ``None`` if there would be more than ``most`` boxes."""
    nodes = plain.nodes
    inputs: list[list[int]] = [[] for _ in nodes]
    for source, target in plain.edges:
        inputs[target].append(source)
    box_of = contract(inputs, [scope[:depth] if len(scope) >= depth else None for scope in scopes], most)
    if box_of is None:
        return None
    members: dict[int, list[int]] = {}
    for i, box in enumerate(box_of):
        members.setdefault(box, []).append(i)
    # A box stands where its first operation does: its leaves may be as old as the model.
    keys = [next((i for i in group if inputs[i]), group[0]) for group in members.values()]
    number = {box: i for i, box in enumerate(members)}
    quotient = [(number[box_of[source]], number[box_of[target]]) for source, target in plain.edges]
    order = in_order(len(members), {edge for edge in quotient if edge[0] != edge[1]}, keys)
    groups = list(members.values())
    used_outside = {source for source, target in plain.edges if box_of[source] != box_of[target]}
    used = {source for source, _ in plain.edges}
    boxes, place = [], [0] * len(groups)
    for position, i in enumerate(order):
        place[i] = position
        group = groups[i]
        if len(group) == 1:
            boxes.append(plain.boxes[group[0]])
            continue
        results = tuple(nodes[j] for j in group if j in used_outside or j not in used)
        outside = dict.fromkeys(nodes[s] for j in group for s in inputs[j] if box_of[s] != box_of[j])
        scope = ".".join(scopes[group[0]][:depth])
        members_of = tuple(nodes[j] for j in group)
        boxes.append(Box("module", members_of, scope, results, tuple(outside), root=plain.boxes[group[0]].root))
    edges: dict[tuple[int, int], int] = {}
    for a, b in quotient:
        if a != b:
            pair = place[a], place[b]
            both = boxes[pair[0]].kind == boxes[pair[1]].kind == "node"
            edges[pair] = edges.get(pair, 0) + 1 if both else 1
    return Folded(nodes, _numbered(boxes), [pair for pair, count in edges.items() for _ in range(count)])


def _numbered(boxes: list[Box]) -> list[Box]:
    """With the part that each box of a split module is."""
    parts: dict[str, list[int]] = {}
    for i, box in enumerate(boxes):
        if box.kind == "module":
            parts.setdefault(box.scope, []).append(i)
    for places in parts.values():
        for part, i in enumerate(places, 1):
            boxes[i] = replace(boxes[i], part=part, parts=len(places))
    return boxes


def _ends(folded: Folded, limit: int) -> Folded:
    """The first and the last boxes, and one for all between; a segment of the order, so no cycle goes through it."""
    ends = max(1, min(_ENDS, (limit - 1) // 2))
    boxes, last = folded.boxes, len(folded.boxes) - ends
    if last <= ends:
        return folded
    rest = Box("rest", tuple(node for box in boxes[ends:last] for node in box.nodes))

    def place(i: int) -> int:
        return min(i, ends) if i < last else i - last + ends + 1

    edges: dict[tuple[int, int], int] = {}
    for a, b in folded.edges:
        pair = place(a), place(b)
        if pair[0] != pair[1]:
            edges[pair] = 1 if ends in pair else edges.get(pair, 0) + 1
    shown = [*boxes[:ends], rest, *boxes[last:]]
    return Folded(folded.nodes, shown, [pair for pair, count in edges.items() for _ in range(count)])


def _root(scopes: Iterable[str]) -> str:
    """The first level, if all have the same and some have more."""
    levels = {(first, bool(more)) for first, _, more in (scope.partition(".") for scope in scopes)}
    firsts = {first for first, _ in levels}
    return firsts.pop() if len(firsts) == 1 and any(more for _, more in levels) else ""


def common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The levels that all paths begin with; there is at least one path."""
    low, high = min(paths), max(paths)
    same = next((i for i, (left, right) in enumerate(zip(low, high)) if left != right), min(len(low), len(high)))
    return low[:same]

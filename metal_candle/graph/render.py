"""Nodes as text, as Graphviz and as Mermaid. All take them with dependencies first, and fold what is large."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Union

from .box import Box, references, summary
from .fold import LIMIT, Folded, common
from .fold import fold as folding
from .looks import INK, LOOKS, kind_of, outputs_of
from .node import GraphNode

Fold = Union[bool, int, None]
"""How modules are folded: see ``fold.fold``."""


def text(nodes: Sequence[GraphNode], limit: int | None = LIMIT, fold: Fold = None) -> str:
    """A line per node or module: ``%7 = affine(mul=2.0, add=0.0) <- %5  [2, 3] f32, lazy, in Decoder.norm``.

    A module's line begins with those of its nodes that are used elsewhere.
    """
    if not nodes:
        return "an empty graph"
    boxes = folding(nodes, limit, fold).boxes
    heads = [
        f"{references(box.results)} = {box.title}{f' <- {references(box.sources)}' if box.sources else ''}"
        for box in boxes
        if box.kind != "rest"
    ]
    width = max(map(len, heads))
    listed = iter(heads)
    return "\n".join(
        f"… {summary(nodes)}"
        if box.kind == "rest"
        else f"{next(listed):<{width}}  {box.result}, {box.state}{_origin(box)}"
        for box in boxes
    )


def dot(nodes: Sequence[GraphNode], limit: int | None = LIMIT, fold: Fold = None) -> str:
    """A ``digraph`` with a cluster for each module.

    Inputs, variables and evaluated nodes are filled, each in its colour, inputs and variables rounded, folded modules
    tabbed; outputs have a bold border.
    """
    folded = folding(nodes, limit, fold)
    clusters, outputs = itertools.count(), outputs_of(nodes)

    def shown(box: Box) -> str:
        if box.kind == "rest":
            return f'more [label="{_escaped(summary(nodes))}", style=dashed];'
        label = _escaped(f"{box.title}\n{box.result}").replace("\n", "\\n")
        kind = kind_of(box)
        looks = ", shape=tab" if box.kind == "module" else ""
        if kind in _COLOURED:
            style = '"rounded,filled"' if kind in _LEAVES else "filled"
            looks += f', style={style}, fillcolor="{LOOKS[kind].fill}", color="{LOOKS[kind].stroke}"'
        bold = "" if outputs.isdisjoint(box.nodes) else ", penwidth=2.5"
        return f'{box.name} [label="{label}"{looks}{bold}];'

    def opened(label: str) -> list[str]:
        return [f"subgraph cluster_{next(clusters)} {{", f'  label="{_escaped(label)}";', "  style=rounded;"]

    lines = ["digraph graph_of_operations {", "  rankdir=TB;", "  node [shape=box];"]
    lines += _nested(folded, shown, opened, "}")
    lines += [f"  {source} -> {target};" for source, target in _edges(folded)]
    return "\n".join([*lines, "}"])


def mermaid(nodes: Sequence[GraphNode], limit: int | None = LIMIT, fold: Fold = None) -> str:
    """A ``flowchart`` with a subgraph for each module; colours as in ``dot``.

    Inputs and variables have round ends, evaluated nodes round corners, folded modules a frame, outputs a bold border.
    """
    folded = folding(nodes, limit, fold)
    clusters, outputs = itertools.count(), outputs_of(nodes)
    classes: dict[str, list[str]] = {}
    for box in folded.boxes:
        if (kind := kind_of(box)) in _COLOURED:
            classes.setdefault(kind, []).append(box.name)
        if box.kind != "rest" and not outputs.isdisjoint(box.nodes):
            classes.setdefault("output", []).append(box.name)

    def shown(box: Box) -> str:
        if box.kind == "rest":
            return f'more[["{summary(nodes)}"]]'
        opening, closing = ("(", ")") if box.evaluated else ("[", "]")
        if box.kind == "module":
            opening, closing = "[[", "]]"
        elif kind_of(box) in _LEAVES:
            opening, closing = "([", "])"
        return f'{box.name}{opening}"{_entities(box.title)}<br/>{_entities(box.result)}"{closing}'

    def opened(label: str) -> list[str]:
        return [f'subgraph s{next(clusters)}["{_entities(label)}"]']

    lines = ["flowchart TD", *_nested(folded, shown, opened, "end")]
    lines += [f"  {source} --> {target}" for source, target in _edges(folded)]
    for kind, names in classes.items():
        lines += [f"  classDef {kind} {_style(kind)}", f"  class {','.join(names)} {kind}"]
    return "\n".join(lines)


_LEAVES = ("input", "variable")
_COLOURED = (*_LEAVES, "evaluated", "done")


def _style(kind: str) -> str:
    """A Mermaid class; the colour of text as well, which in a dark theme is light."""
    if kind == "output":
        return "stroke-width:3px"
    return f"fill:{LOOKS[kind].fill},stroke:{LOOKS[kind].stroke},color:{INK}"


@dataclass
class _Cluster:
    """A level of the paths: what was recorded right there, and the levels below."""

    boxes: list[Box] = field(default_factory=list)
    inner: dict[str, _Cluster] = field(default_factory=dict)


def _nested(folded: Folded, shown: Callable[[Box], str], opened: Callable[[str], list[str]], closed: str) -> list[str]:
    """The boxes as indented lines, those of a module between what opens it and ``closed``."""
    users: dict[int, list[tuple[str, ...]]] = {}
    for source, target in folded.edges:
        users.setdefault(source, []).append(_around(folded.boxes[target]))
    outermost = _Cluster()
    for i, box in enumerate(folded.boxes):
        path = _around(box)
        if box.kind == "node" and not box.sources and i in users:
            path = common(users[i])  # a leaf stands with what uses it
        cluster = outermost
        for level in path:
            cluster = cluster.inner.setdefault(level, _Cluster())
        cluster.boxes.append(box)

    def lines(cluster: _Cluster, indent: str) -> list[str]:
        found = [indent + shown(box) for box in cluster.boxes]
        for label, inner in _levels(cluster):
            found += [indent + line for line in opened(label)] + lines(inner, indent + "  ") + [indent + closed]
        return found

    return lines(outermost, "  ")


def _levels(cluster: _Cluster) -> Iterator[tuple[str, _Cluster]]:
    """The levels right inside; a module that only calls one other is none of its own."""
    for label, inner in cluster.inner.items():
        if not inner.boxes and len(inner.inner) == 1:
            yield from ((f"{label}.{level}", deeper) for level, deeper in _levels(inner))
        else:
            yield label, inner


def _around(box: Box) -> tuple[str, ...]:
    """The path of the module that a box is drawn in, an index joined to its list; a folded one is in the next outer."""
    levels: list[str] = []
    for part in box.scope.split(".") if box.scope else ():
        if levels and part.isdigit():
            levels[-1] += f".{part}"
        else:
            levels.append(part)
    return tuple(levels[:-1] if box.kind == "module" else levels)


def _edges(folded: Folded) -> list[tuple[str, str]]:
    """From what is used to what uses it, by name."""
    return [(folded.boxes[source].name, folded.boxes[target].name) for source, target in folded.edges]


def _origin(box: Box) -> str:
    return f", in {box.scope}" if box.kind == "node" and box.scope else ""


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"')


def _entities(label: str) -> str:
    # Mermaid has no backslash and takes labels for HTML: what means something there is spelled as an entity.
    return label.translate(_ENTITIES)


_ENTITIES = str.maketrans({"#": "#35;", "&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;"})

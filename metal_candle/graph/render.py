"""Nodes as text, as Graphviz and as Mermaid. All take them with dependencies first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .node import GraphNode
from .operation import Meta

LIMIT = 400
"""Of a graph of more nodes only the first and the last are shown, with a count of what each operation does between."""
_ENDS = 20


def text(nodes: Sequence[GraphNode], limit: int | None = LIMIT) -> str:
    """A line per node: ``%7 = affine(mul=2.0, add=0.0) <- %5  [2, 3] f32, lazy``."""
    if not nodes:
        return "an empty graph"
    first, last = _ends(nodes, limit)
    shown = [*first, *last]
    heads = [f"%{node.id} = {node.operation.describe()}{_inputs(node)}" for node in shown]
    width = max(len(head) for head in heads)
    lines = [f"{head:<{width}}  {_result(node)}, {_state(node)}" for head, node in zip(heads, shown)]
    if last:
        lines.insert(len(first), f"… {_count(nodes)}")
    return "\n".join(lines)


def dot(nodes: Sequence[GraphNode], limit: int | None = LIMIT) -> str:
    """A ``digraph``; nodes that have a value are filled."""
    lines = ["digraph graph_of_operations {", "  rankdir=TB;", "  node [shape=box];"]
    first, last = _ends(nodes, limit)
    for node in (*first, *last):
        label = _escaped(f"{node.operation.describe()}\n{_result(node)}").replace("\n", "\\n")
        lines.append(f'  n{node.id} [label="{label}"{", style=filled" if node.value is not None else ""}];')
    if last:
        lines.append(f'  more [label="{_escaped(_count(nodes))}", style=dashed];')
    lines += [f"  {source} -> {target};" for source, target in _edges(nodes, {*first, *last})]
    return "\n".join([*lines, "}"])


def mermaid(nodes: Sequence[GraphNode], limit: int | None = LIMIT) -> str:
    """A ``flowchart``; nodes that have a value are rounded."""
    lines = ["flowchart TD"]
    first, last = _ends(nodes, limit)
    for node in (*first, *last):
        # Mermaid has no backslash: a quotation mark is spelled as an entity.
        label = f"{node.operation.describe()}<br/>{_result(node)}".replace('"', "#quot;")
        opening, closing = ("(", ")") if node.value is not None else ("[", "]")
        lines.append(f'  n{node.id}{opening}"{label}"{closing}')
    if last:
        lines.append(f'  more[["{_count(nodes)}"]]')
    lines += [f"  {source} --> {target}" for source, target in _edges(nodes, {*first, *last})]
    return "\n".join(lines)


def _ends(nodes: Sequence[GraphNode], limit: int | None) -> tuple[Sequence[GraphNode], Sequence[GraphNode]]:
    """The nodes to show: all as the first part, or those of both ends."""
    if limit is None or len(nodes) <= limit:
        return nodes, ()
    ends = max(1, min(_ENDS, limit // 2))
    return nodes[:ends], nodes[-ends:]


def _count(nodes: Sequence[GraphNode]) -> str:
    """What a graph consists of, in one line."""
    kinds = Counter(node.operation.name() for node in nodes)
    listed = [f"{count:,} {name}" for name, count in kinds.most_common(12)]
    if len(kinds) > len(listed):
        listed.append(f"{len(kinds) - len(listed)} more kinds")
    evaluated = sum(node.value is not None for node in nodes)
    return f"{len(nodes):,} nodes in all, {evaluated:,} evaluated: {', '.join(listed)}"


def _edges(nodes: Sequence[GraphNode], shown: set[GraphNode]) -> list[tuple[str, str]]:
    """From an input to what uses it; what is not shown is one place, ``more``."""
    if len(shown) == len(nodes):
        return [(f"n{source.id}", f"n{node.id}") for node in nodes for source in node.inputs]
    edges: dict[tuple[str, str], None] = {}
    for node in nodes:
        for source in node.inputs:
            pair = tuple(f"n{end.id}" if end in shown else "more" for end in (source, node))
            if pair != ("more", "more"):
                edges[pair[0], pair[1]] = None
    return list(edges)


def _inputs(node: GraphNode) -> str:
    return f" <- {', '.join(f'%{source.id}' for source in node.inputs)}" if node.inputs else ""


def _result(node: GraphNode) -> str:
    metas = [node.meta] if isinstance(node.meta, Meta) else node.meta
    return "; ".join(f"{list(meta.shape)} {meta.dtype}" for meta in metas)


def _state(node: GraphNode) -> str:
    kind = "variable, " if node.variable is not None else ""
    return kind + ("evaluated" if node.value is not None else "lazy")


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"')

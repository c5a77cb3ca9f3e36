"""Nodes as text, as Graphviz and as Mermaid. All take them with dependencies first."""

from __future__ import annotations

from collections.abc import Sequence

from .node import GraphNode
from .operation import Meta


def text(nodes: Sequence[GraphNode]) -> str:
    """A line per node: ``%7 = affine(mul=2.0, add=0.0) <- %5  [2, 3] f32, lazy``."""
    if not nodes:
        return "an empty graph"
    heads = [f"%{node.id} = {node.operation.describe()}{_inputs(node)}" for node in nodes]
    width = max(len(head) for head in heads)
    return "\n".join(f"{head:<{width}}  {_result(node)}, {_state(node)}" for head, node in zip(heads, nodes))


def dot(nodes: Sequence[GraphNode]) -> str:
    """A ``digraph``; nodes that have a value are filled."""
    lines = ["digraph graph_of_operations {", "  rankdir=TB;", "  node [shape=box];"]
    for node in nodes:
        label = _escaped(f"{node.operation.describe()}\n{_result(node)}").replace("\n", "\\n")
        lines.append(f'  n{node.id} [label="{label}"{", style=filled" if node.value is not None else ""}];')
    lines += [f"  n{source.id} -> n{node.id};" for node in nodes for source in node.inputs]
    return "\n".join([*lines, "}"])


def mermaid(nodes: Sequence[GraphNode]) -> str:
    """A ``flowchart``; nodes that have a value are rounded."""
    lines = ["flowchart TD"]
    for node in nodes:
        # Mermaid has no backslash: a quotation mark is spelled as an entity.
        label = f"{node.operation.describe()}<br/>{_result(node)}".replace('"', "#quot;")
        opening, closing = ("(", ")") if node.value is not None else ("[", "]")
        lines.append(f'  n{node.id}{opening}"{label}"{closing}')
    lines += [f"  n{source.id} --> n{node.id}" for node in nodes for source in node.inputs]
    return "\n".join(lines)


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

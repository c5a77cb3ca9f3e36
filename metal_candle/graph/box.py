"""What a picture of a graph shows as one thing: a node, a module with all that it recorded, or everything left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .node import GraphNode
from .operation import Meta

_MOST = 4
"""More results or inputs of a module than this are counted, not listed."""


@dataclass(frozen=True)
class Box:
    """Some nodes, dependencies first, drawn as one.

    ``scope`` is the module that they are, or that the one node was recorded in; ``results`` are the nodes that are
    used outside, or nowhere; ``sources`` the nodes outside that they use. A module that had to be split is ``part``
    of ``parts``. ``root`` is what all scopes of the graph begin with, left out of titles.
    """

    kind: Literal["node", "module", "rest"]
    nodes: tuple[GraphNode, ...]
    scope: str = ""
    results: tuple[GraphNode, ...] = ()
    sources: tuple[GraphNode, ...] = ()
    part: int = 1
    parts: int = 1
    root: str = ""

    @property
    def name(self) -> str:
        """What edges call it: "n7", "m7", or "more"."""
        number = str(self.nodes[0].id).replace("/", "_")
        return {"node": f"n{number}", "module": f"m{number}", "rest": "more"}[self.kind]

    @property
    def title(self) -> str:
        """The operation with its parameters, or "layers.0.mlp — 14 nodes"."""
        if self.kind == "node":
            return " ".join(self.nodes[0].operation.describe().split())  # an array may be written in lines
        part = f" ({self.part} of {self.parts})" if self.parts > 1 else ""
        return f"{self.place}{part} — {len(self.nodes):,} node{'s' if len(self.nodes) != 1 else ''}"

    @property
    def place(self) -> str:
        """The scope below what all of the graph have in common."""
        return self.scope.removeprefix(self.root + ".") if self.root else self.scope

    @property
    def result(self) -> str:
        """Shape and dtype of what it gives: "[2, 3] f32"."""
        if self.kind == "rest":
            return ""
        shown = "; ".join(result_of(node) for node in self.results[:_MOST])
        return shown + (f"; … {len(self.results) - _MOST} more" if len(self.results) > _MOST else "")

    @property
    def evaluated(self) -> bool:
        """Whether all that it computes is there."""
        return self._evaluated == len(self._computed)

    @property
    def state(self) -> str:
        """What of it is there: "lazy", "evaluated", "variable, evaluated", "2 of 14 evaluated, 1 variable"."""
        if self.kind == "node":
            return ("variable, " if self.nodes[0].variable is not None else "") + self._progress
        variables = sum(node.variable is not None for node in self.nodes)
        return self._progress + (f", {variables:,} variable{'s' if variables > 1 else ''}" if variables else "")

    @property
    def _progress(self) -> str:
        if self.evaluated:
            return "evaluated"
        return f"{self._evaluated:,} of {len(self._computed):,} evaluated" if self._evaluated else "lazy"

    @property
    def _computed(self) -> Sequence[GraphNode]:
        """The nodes that count: of a module, not its weights, which are always there."""
        return self.nodes if self.kind == "node" else [node for node in self.nodes if node.operation.arity != 0]

    @property
    def _evaluated(self) -> int:
        return sum(node.value is not None for node in self._computed)


def result_of(node: GraphNode) -> str:
    """Shape and dtype of a node's value: "[2, 3] f32"."""
    metas = [node.meta] if isinstance(node.meta, Meta) else node.meta
    return "; ".join(f"{list(meta.shape)} {meta.dtype}" for meta in metas)


def references(nodes: Sequence[GraphNode]) -> str:
    """Nodes by their ids: "%3, %5"."""
    shown = ", ".join(f"%{node.id}" for node in nodes[: 2 * _MOST])
    return shown + (f", … {len(nodes) - 2 * _MOST} more" if len(nodes) > 2 * _MOST else "")


def kinds(nodes: Sequence[GraphNode]) -> str:
    """How many of each operation, the most frequent first: "3 matmul, 2 add"."""
    counts = Counter(node.operation.name() for node in nodes)
    listed = [f"{count:,} {name}" for name, count in counts.most_common(12)]
    if len(counts) > len(listed):
        listed.append(f"{len(counts) - len(listed)} more kinds")
    return ", ".join(listed)


def summary(nodes: Sequence[GraphNode]) -> str:
    """What a graph consists of, in one line."""
    evaluated = sum(node.value is not None for node in nodes)
    return f"{len(nodes):,} nodes in all, {evaluated:,} evaluated: {kinds(nodes)}"

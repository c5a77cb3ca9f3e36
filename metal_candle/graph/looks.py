"""What each kind of box looks like in a picture: the same fill and border in all languages that have colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .box import Box
from .node import GraphNode

INK = "#1a202c"
"""Text on any of the fills."""


class Look(NamedTuple):
    """The word in the legend, colours, the radius of the corners, and whether the border is dashed."""

    legend: str
    fill: str
    stroke: str
    corner: float
    dashed: bool = False


LOOKS = {
    "input": Look("input", "#e3ebf6", "#5b7aa8", 20.0),
    "variable": Look("variable", "#fdebc8", "#b7791f", 20.0),
    "computed": Look("to compute", "#ffffff", "#4a5568", 4.0),
    "view": Look("view", "#f4f4f5", "#71717a", 4.0, True),
    "evaluated": Look("evaluated", "#d3f2dc", "#2f855a", 4.0),
    "module": Look("module", "#ebe4fc", "#6b46c1", 8.0),
    "done": Look("evaluated module", "#c9ecdf", "#6b46c1", 8.0),
    "nothing": Look("an empty graph", "#ffffff", "#4b5563", 4.0, True),
    "rest": Look("left out", "#e5e7eb", "#4b5563", 8.0, True),
}
OUTPUT = Look("output", "#ffffff", "#1a202c", 4.0)
"""How the legend shows a bold border."""


def kind_of(box: Box) -> str:
    """The name of a box's look."""
    node = box.nodes[0]
    if box.kind == "rest":
        return "rest"
    if box.kind == "module":
        return "done" if box.evaluated else "module"
    if node.variable is not None:
        return "variable"
    if node.operation.arity == 0:
        return "input"
    if node.value is not None:
        return "evaluated"
    return "view" if node.operation.is_view else "computed"


def outputs_of(nodes: Sequence[GraphNode]) -> set[GraphNode]:
    """The nodes that none of the others uses."""
    return set(nodes) - {source for node in nodes for source in node.inputs}

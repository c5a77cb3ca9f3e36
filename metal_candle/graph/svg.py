"""A graph as SVG: strings only, no style sheet and no script, so that every notebook and browser shows the same.

All text stands on a filled shape and wires are of a middle grey: it can be read on a light and on a dark page.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from .box import Box, kinds, references, summary
from .fold import fold as folding
from .layers import Wire, arrange
from .node import GraphNode
from .render import Fold

LIMIT = 120
"""A graph of more nodes is folded: a drawing takes more room than text."""

_SIGN, _SMALL = 7.3, 6.1
"""Width of a character of the title and of the line below it."""
_HEIGHT, _MARGIN, _LEGEND = 40.0, 12.0, 20.0
_LONGEST = 40
_INK, _FAINT, _WIRE = "#1a202c", "#4a5568", "#8a8f98"
# What XML 1.0 has no way to write: https://www.w3.org/TR/xml/#charsets
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Look(NamedTuple):
    legend: str
    fill: str
    stroke: str
    corner: float
    dashed: bool = False


_LOOKS = {
    "leaf": _Look("leaf", "#e3ebf6", "#5b7aa8", 20.0),
    "variable": _Look("variable", "#fdebc8", "#b7791f", 20.0),
    "computed": _Look("to compute", "#ffffff", "#4a5568", 4.0),
    "view": _Look("view", "#f4f4f5", "#71717a", 4.0, True),
    "evaluated": _Look("evaluated", "#d3f2dc", "#2f855a", 4.0),
    "module": _Look("module", "#ebe4fc", "#6b46c1", 8.0),
    "done": _Look("evaluated module", "#c9ecdf", "#6b46c1", 8.0),
    "nothing": _Look("an empty graph", "#ffffff", "#4b5563", 4.0, True),
    "rest": _Look("left out", "#e5e7eb", "#4b5563", 8.0, True),
}


def svg(nodes: Sequence[GraphNode], limit: int | None = LIMIT, fold: Fold = None) -> str:
    """A drawing of nodes that come with dependencies first; tooltips have all that is known of each.

    ``limit`` and ``fold`` are those of ``fold.fold``.
    """
    folded = folding(nodes, limit, fold)
    texts = [_text(box, nodes) for box in folded.boxes]
    sizes = [(max(_wide(title) * _SIGN, _wide(line) * _SMALL) + 24, _HEIGHT) for title, line in texts]
    placed = arrange(sizes, folded.edges)
    looks = [_kind(box) for box in folded.boxes]
    legend, below, widest = _legend([kind for kind in _LOOKS if kind in looks] or ["nothing"], max(placed.width, 420.0))
    width, height = max(placed.width, widest) + 2 * _MARGIN, placed.height + below + 2 * _MARGIN
    shift = _MARGIN + (width - 2 * _MARGIN - placed.width) / 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="graph of {len(nodes):,} nodes" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" text-anchor="middle">',
        f'<g transform="translate({_MARGIN:.0f} {_MARGIN:.0f})">{legend}</g>',
        f'<g transform="translate({shift:.1f} {_MARGIN + below:.1f})">',
        f'<g fill="none" stroke="{_WIRE}" stroke-width="1.4">',
        *(_wire(wire) for wire in placed.wires),
        "</g>",
        f'<g fill="{_WIRE}">',
        *(_head(wire) for wire in placed.wires if wire.arrives),
        "</g>",
    ]
    for box, (title, line), (wide, _), centre, kind in zip(folded.boxes, texts, sizes, placed.centres, looks):
        lines.append(_shape(centre, wide, _LOOKS[kind], title, line, _tooltip(box, nodes), kind in ("module", "done")))
    return "\n".join([*lines, "</g>", "</svg>"])


def _kind(box: Box) -> str:
    node = box.nodes[0]
    if box.kind == "rest":
        return "rest"
    if box.kind == "module":
        return "done" if box.evaluated else "module"
    if node.variable is not None:
        return "variable"
    if node.operation.arity == 0:
        return "leaf"
    if node.value is not None:
        return "evaluated"
    return "view" if node.operation.is_view else "computed"


def _text(box: Box, nodes: Sequence[GraphNode]) -> tuple[str, str]:
    """The two lines in a box."""
    if box.kind == "rest":
        return f"… {len(box.nodes):,} more nodes", f"of {len(nodes):,} in all"
    if box.kind == "module":
        part = f"part {box.part} of {box.parts} · " if box.parts > 1 else ""
        return _cut(box.place, True), _cut(f"{part}{len(box.nodes):,} nodes · {box.result}", False)
    return _cut(box.title, False), _cut(box.result, False)


def _cut(line: str, keep_end: bool) -> str:
    if len(line) <= _LONGEST:
        return line
    return f"…{line[1 - _LONGEST :]}" if keep_end else f"{line[: _LONGEST - 1]}…"


def _tooltip(box: Box, nodes: Sequence[GraphNode]) -> str:
    if box.kind == "rest":
        return summary(nodes)
    lines = [f"{references(box.results)} = {box.title}", box.result, box.state]
    if box.kind == "module":
        lines.append(kinds(box.nodes))
    if box.sources:
        lines.append(f"from {references(box.sources)}")
    if box.scope:
        lines.append(f"in {box.scope}" if box.kind == "node" else box.scope)
    return "\n".join(lines)


def _wide(line: str) -> int:
    """Columns that a line takes: letters of East Asian scripts take two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in line)


def _written(line: str) -> str:
    return escape(_UNWRITABLE.sub("\ufffd", line))


def _shape(
    centre: tuple[float, float], width: float, look: _Look, title: str, line: str, tooltip: str, stacked: bool
) -> str:
    x, y = centre
    left, top = x - width / 2, y - _HEIGHT / 2
    behind = ""
    if stacked:
        behind = _rectangle(left + 4, top + 4, width, _HEIGHT, look)
    return (
        f"<g><title>{_written(tooltip)}</title>{behind}{_rectangle(left, top, width, _HEIGHT, look)}"
        f'<text x="{x:.1f}" y="{y - 3:.1f}" font-size="12" fill="{_INK}">{_written(title)}</text>'
        f'<text x="{x:.1f}" y="{y + 12:.1f}" font-size="10" fill="{_FAINT}">{_written(line)}</text></g>'
    )


def _rectangle(left: float, top: float, width: float, height: float, look: _Look) -> str:
    dashes = ' stroke-dasharray="5 3"' if look.dashed else ""
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.0f}" rx="{look.corner:.0f}" '
        f'fill="{look.fill}" stroke="{look.stroke}" stroke-width="1.3"{dashes}/>'
    )


def _wire(wire: Wire) -> str:
    """A curve that leaves and arrives upright, and goes on straight where it passes a row."""
    (x, y), (to_x, to_y) = wire.start, wire.end
    if wire.arrives:
        to_y -= 6  # room for the head
    half = (y + to_y) / 2
    on = f"V{wire.passes_to:.1f}" if wire.passes_to > to_y and not wire.arrives else ""
    if abs(x - to_x) < 0.5:
        return f'<path d="M{x:.1f} {y:.1f}V{to_y:.1f}{on}"/>'
    return f'<path d="M{x:.1f} {y:.1f}C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_y:.1f}{on}"/>'


def _head(wire: Wire) -> str:
    x, y = wire.end
    return f'<path d="M{x:.1f} {y:.1f}l-3.5 -7h7z"/>'


def _legend(kinds_shown: Sequence[str], room: float) -> tuple[str, float, float]:
    """A sample of each kind, in as many lines as the room needs; with the height and width it takes."""
    shapes, x, y, widest = [], 0.0, 0.0, 0.0
    for kind in kinds_shown:
        look = _LOOKS[kind]
        width = _wide(look.legend) * _SMALL + 16
        if x and x + width > room:
            x, y = 0.0, y + _LEGEND + 6
        shapes.append(
            _rectangle(x, y, width, _LEGEND, look)
            + f'<text x="{x + width / 2:.1f}" y="{y + 13.5:.1f}" font-size="10" fill="{_INK}">{look.legend}</text>'
        )
        x += width + 8
        widest = max(widest, x - 8)
    return "".join(shapes), y + _LEGEND + 16, widest

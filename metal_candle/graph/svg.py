"""A graph as SVG: strings only, no style sheet and no script, so that every notebook and browser shows the same.

All text stands on a filled shape and wires are of a middle grey: it can be read on a light and on a dark page.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from html import escape

from .box import Box, kinds, references, summary
from .fold import fold as folding
from .layers import Wire, arrange
from .looks import INK, LOOKS, OUTPUT, Look, kind_of, outputs_of
from .node import GraphNode
from .render import Fold

LIMIT = 120
"""A graph of more nodes is folded: a drawing takes more room than text."""

_SIGN, _SMALL = 7.3, 6.1
"""Width of a character of the title and of the line below it."""
_HEIGHT, _MARGIN, _LEGEND = 40.0, 12.0, 20.0
_LONGEST = 40
_FAINT, _WIRE = "#4a5568", "#8a8f98"
_BORDER, _BOLD = 1.3, 2.8
# What XML 1.0 has no way to write: https://www.w3.org/TR/xml/#charsets
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def svg(nodes: Sequence[GraphNode], limit: int | None = LIMIT, fold: Fold = None) -> str:
    """A drawing of nodes that come with dependencies first; tooltips have all that is known of each.

    ``limit`` and ``fold`` are those of ``fold.fold``.
    """
    folded = folding(nodes, limit, fold)
    texts = [_text(box, nodes) for box in folded.boxes]
    sizes = [(max(_wide(title) * _SIGN, _wide(line) * _SMALL) + 24, _HEIGHT) for title, line in texts]
    placed = arrange(sizes, folded.edges)
    looks = [kind_of(box) for box in folded.boxes]
    outputs = outputs_of(nodes)
    legend, below, widest = _legend([kind for kind in LOOKS if kind in looks], max(placed.width, 420.0))
    width, height = max(placed.width, widest) + 2 * _MARGIN, placed.height + below + 2 * _MARGIN
    shift = _MARGIN + (width - 2 * _MARGIN - placed.width) / 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="graph of {len(nodes):,} nodes" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace">',
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
        border = _BORDER if outputs.isdisjoint(box.nodes) else _BOLD
        stacked = kind in ("module", "done")
        lines.append(_shape(centre, wide, LOOKS[kind], title, line, _tooltip(box, nodes), stacked, border))
    return "\n".join([*lines, "</g>", "</svg>"])


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
    centre: tuple[float, float],
    width: float,
    look: Look,
    title: str,
    line: str,
    tooltip: str,
    stacked: bool,
    border: float,
) -> str:
    x, y = centre
    left, top = x - width / 2, y - _HEIGHT / 2
    behind = ""
    if stacked:
        behind = _rectangle(left + 4, top + 4, width, _HEIGHT, look, border)
    return (
        f"<g><title>{_written(tooltip)}</title>{behind}{_rectangle(left, top, width, _HEIGHT, look, border)}"
        f"{_line(x, y - 3, 12, INK, title)}{_line(x, y + 12, 10, _FAINT, line)}</g>"
    )


def _line(x: float, y: float, size: int, fill: str, line: str) -> str:
    # Anchored one by one: converters overlook what a text inherits.
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="middle">{_written(line)}</text>'
    )


def _rectangle(left: float, top: float, width: float, height: float, look: Look, border: float = _BORDER) -> str:
    dashes = ' stroke-dasharray="5 3"' if look.dashed else ""
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.0f}" '
        f'rx="{min(look.corner, height / 2):.0f}" '
        f'fill="{look.fill}" stroke="{look.stroke}" stroke-width="{border}"{dashes}/>'
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
    for look in [*(LOOKS[kind] for kind in kinds_shown), OUTPUT] if kinds_shown else [LOOKS["nothing"]]:
        width = _wide(look.legend) * _SMALL + 16
        if x and x + width > room:
            x, y = 0.0, y + _LEGEND + 6
        shapes.append(
            _rectangle(x, y, width, _LEGEND, look, _BOLD if look is OUTPUT else _BORDER)
            + _line(x + width / 2, y + 13.5, 10, INK, look.legend)
        )
        x += width + 8
        widest = max(widest, x - 8)
    return "".join(shapes), y + _LEGEND + 16, widest

"""Lines of a kernel's text from return addresses in its object."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .generate import Generated
from .native import Report

PARTS = ("body", "header")


@cache
def _symbolizer() -> tuple[str, ...] | None:
    for name in ("llvm-symbolizer", *[f"llvm-symbolizer-{version}" for version in range(30, 13, -1)]):
        path = shutil.which(name)
        if path:
            return (path, "--output-style=LLVM", "--functions=none", "--inlines", "-e")
    path = shutil.which("addr2line")
    return (path, "-i", "-e") if path else None


class _Place(NamedTuple):
    """A line of a part of the text, and the column, 0 where the tool does not tell it."""

    part: str
    line: int
    column: int


def place(report: Report, kernel: Path, generated: Generated) -> str:
    """The report's text with lines for places, where a tool that finds them is installed."""
    text = report.text.decode(errors="replace")
    wanted = sorted({int(which) for which in re.findall(r" \{(\d)", text)})
    found = {which: _places(kernel, [a for a in report.places[which] if a]) for which in wanted}
    plain = {which: _words(places, columns=False) for which, places in found.items()}
    # Two places on one line are told apart by their columns.
    alike = {w for w, places in found.items() if any(plain[w] == plain[o] and places != found[o] for o in found)}

    def told(match: re.Match[str]) -> str:
        which = int(match[1])
        if not plain[which]:
            return f" at {match[2]}" if match[2] else ""
        return f" at {_words(found[which], columns=which in alike)}"

    def named(match: re.Match[str]) -> str:
        part, line, column = match[1], int(match[2]), int(match[3])
        lines = (generated.body if part == "body" else generated.header).splitlines()
        name = re.match(r"\w+", lines[line - 1][column - 1 :]) if line <= len(lines) else None
        return name[0] if name else "an array"

    return re.sub(r"\{=(\w+):(\d+):(\d+)\}", named, re.sub(r" \{(\d)(?:\|([^}]*))?\}", told, text))


def _words(places: Sequence[_Place], columns: bool) -> str:
    return ", called at ".join(
        f"line {at.line}{f', column {at.column},' if columns and at.column else ''} of the {at.part}" for at in places
    )


def _places(kernel: Path, addresses: Sequence[int]) -> list[_Place]:
    """The innermost place and the calls that led to it, those in the text only."""
    tool = _symbolizer()
    if tool is None or not addresses:
        return []
    # A return address is that of the next instruction, which may belong to the next line.
    done = subprocess.run([*tool, str(kernel), *[hex(a - 1) for a in addresses]], capture_output=True, text=True)
    places = []
    for found in done.stdout.splitlines():
        match = re.match(rf"(?:.*/)?({'|'.join(PARTS)}):(\d+)(?::(\d+))?", found)
        if match and int(match[2]):
            places.append(_Place(match[1], int(match[2]), int(match[3] or 0)))
    return places

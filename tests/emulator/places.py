"""Lines of a kernel's text from return addresses in its object."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .native import Report

PARTS = ("body", "header")


@cache
def _symbolizer() -> tuple[str, ...] | None:
    for name in ("llvm-symbolizer", *[f"llvm-symbolizer-{version}" for version in range(30, 13, -1)]):
        path = shutil.which(name)
        if path:
            return (path, "--output-style=GNU", "--inlines", "--no-demangle", "-e")
    path = shutil.which("addr2line")
    return (path, "-i", "-e") if path else None


def place(report: Report, kernel: Path) -> str:
    """The report's text with lines for places, where a tool that finds them is installed."""

    def told(match: re.Match[str]) -> str:
        found = _lines(kernel, [address for address in report.places[int(match[1])] if address])
        return f" at {', called at '.join(found)}" if found else f" at {match[2]}" if match[2] else ""

    return re.sub(r" \{(\d)(?:\|([^}]*))?\}", told, report.text.decode(errors="replace"))


def _lines(kernel: Path, addresses: Sequence[int]) -> list[str]:
    """The lines of the innermost place and of the calls that led to it, those in the text only."""
    tool = _symbolizer()
    if tool is None or not addresses:
        return []
    # A return address is that of the next instruction, which may belong to the next line.
    done = subprocess.run([*tool, str(kernel), *[hex(a - 1) for a in addresses]], capture_output=True, text=True)
    lines: list[str] = []
    for found in done.stdout.splitlines():
        file, _, line = found.split(" ")[0].rpartition(":")
        part = Path(file).name
        if part in PARTS and line.isdigit() and int(line):
            lines.append(f"line {line} of the {part}")
    return lines

"""The arrays of threadgroup memory in a kernel's object: where each begins and ends.

Layout: System V ABI, "Object Files". A Mach-O object gives no sizes, and there the memory counts as one array.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import NamedTuple

SECTION = "em_threadgroup"
GAP = "em_gap_"

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMBOL_TABLE = 2


class Span(NamedTuple):
    """An array: its name, and its place from the section's begin in bytes."""

    name: str
    offset: int
    bytes: int


def arrays(path: Path) -> list[Span]:
    """The arrays of threadgroup memory in their order; none where the object has no such section or is no ELF."""
    data = path.read_bytes()
    if not data.startswith(b"\x7fELF\x02\x01"):
        return []
    fields = _HEADER.unpack_from(data)
    sections_at, count, names_index = fields[6], fields[12], fields[13]
    headers = [_SECTION.unpack_from(data, sections_at + i * _SECTION.size) for i in range(count)]
    names = headers[names_index]
    wanted = [i for i, header in enumerate(headers) if _text(data, names, header[0]) == SECTION]
    found = []
    for header in headers:
        if header[1] != _SYMBOL_TABLE:
            continue
        for at, _, _, section, address, size in _SYMBOL.iter_unpack(data[header[4] : header[4] + header[5]]):
            if section in wanted and size:
                name = _variable(_text(data, headers[header[6]], at))
                found.append(Span(name, address - headers[section][3], size))
    return sorted((span for span in found if not span.name.startswith(GAP)), key=lambda span: span.offset)


def _text(data: bytes, table: tuple[int, ...], at: int) -> str:
    begin = table[4] + at
    return data[begin : data.index(b"\0", begin)].decode()


def _variable(symbol: str) -> str:
    """The name of a static variable in a function, from its symbol: Itanium's C++ ABI writes ``…E`` length name."""
    for match in reversed(list(re.finditer(r"E(\d+)", symbol))):
        name = symbol[match.end() :][: int(match[1])]
        if len(name) == int(match[1]) and name.isidentifier():
            return name
    return symbol

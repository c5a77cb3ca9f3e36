"""Reading the dynamic symbol table of a 64-bit ELF library, so that no binutils are needed.

Layout: System V ABI, "Object Files" (ELF header, section header, symbol table) and "Program Header".
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_IDENTITY = b"\x7fELF\x02\x01"  # magic, 64-bit, little-endian: what x86-64 and arm64 Linux use
_SECTION_DYNSYM = 11
_SEGMENT_LOAD = 1
_TYPE_SHARED = 3
_BINDINGS = (1, 2)  # global, weak


@dataclass(frozen=True)
class Symbols:
    """The names that a library offers to others and the names that it wants from others."""

    defined: frozenset[str]
    undefined: frozenset[str]


def read_symbols(path: Path) -> Symbols:
    """The global and weak names of the library's dynamic symbol table.

    Raises ``ValueError`` if the file is no complete 64-bit little-endian ELF library, ``OSError`` if it
    cannot be read.
    """
    check_complete(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _symbols(data)
        except (struct.error, LookupError, ValueError) as error:
            raise ValueError(f"{path}: damaged symbol table ({error})") from error


def check_complete(path: Path) -> None:
    """Check from its headers that the file is a shared library and as long as they say.

    Loading a cut library does not fail but ends the process with SIGBUS, so this has to be known first.
    Raises ``ValueError`` if it is not, ``OSError`` if it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(_IDENTITY):
            raise ValueError(f"{path}: not a 64-bit shared library")
        _, kind, _, _, _, segments_at, sections_at, _, _, *counts = _HEADER.unpack(head)
        segment_size, segments, section_size, sections, _ = counts
        if kind != _TYPE_SHARED or segment_size != _SEGMENT.size:
            raise ValueError(f"{path}: not a 64-bit shared library")
        file.seek(segments_at)
        table = file.read(segments * segment_size)
    needed = max(segments_at + segments * segment_size, sections_at + sections * section_size)
    if len(table) == segments * segment_size:
        for kind, _, offset, _, _, length, _, _ in _SEGMENT.iter_unpack(table):
            if kind == _SEGMENT_LOAD:
                needed = max(needed, offset + length)
    if size < needed:
        raise ValueError(f"{path}: cut off, has {size} of {needed} bytes")


def _symbols(data: mmap.mmap) -> Symbols:
    header = _HEADER.unpack_from(data)
    sections_at, sections = header[6], header[12]
    headers = [_SECTION.unpack_from(data, sections_at + i * _SECTION.size) for i in range(sections)]
    defined: set[str] = set()
    undefined: set[str] = set()
    for _, kind, _, _, offset, size, link, _, _, _ in headers:
        if kind != _SECTION_DYNSYM:
            continue
        names_at, names_size = headers[link][4], headers[link][5]
        names = data[names_at : names_at + names_size]
        for name_at, info, _, section, _, _ in _SYMBOL.iter_unpack(data[offset : offset + size]):
            if info >> 4 in _BINDINGS and name_at:
                name = names[name_at : names.index(b"\0", name_at)].decode()
                (defined if section else undefined).add(name)
    return Symbols(frozenset(defined), frozenset(undefined))

"""The runtime's structures (``runtime/interface.h``) as Python sees them, and calls of it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .arrays import Bytes
from .glue import ENTRY
from .sections import Span, arrays

PLACES, FRAMES = 4, 8
U32, U64 = ctypes.c_uint32, ctypes.c_uint64


class Role(IntEnum):
    """What a buffer is to a kernel. An unused output may stay unwritten."""

    INPUT = 0
    OUTPUT = 1
    UNUSED_OUTPUT = 2


class Argument(NamedTuple):
    """A buffer of a launch: ``element`` is the size of one element in bytes.

    The kernel gets the address of the byte ``first``: below it lies what strides lead back to.
    """

    name: str
    data: Bytes
    element: int
    role: Role
    first: int = 0


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", U64),
        ("first", U64),
        ("element", U32),
        ("role", U32),
    ]


class _Span(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("offset", U32), ("bytes", U32)]


class _Request(ctypes.Structure):
    _fields_ = [
        ("entry", ctypes.c_void_p),
        ("threadgroup_memory", ctypes.c_void_p),
        ("threadgroup_bytes", U64),
        ("spans", ctypes.POINTER(_Span)),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("span_count", U32),
        ("buffer_count", U32),
        ("groups", U32 * 3),
        ("group_size", U32 * 3),
        ("order", U32),
        ("checked", U32),
        ("seed", U64),
        ("patience", ctypes.c_double),
    ]


class Report(ctypes.Structure):
    """What went wrong in a launch. ``text`` has placeholders for ``places``; see ``places.py``."""

    failed: int
    kind: bytes
    text: bytes
    places: Sequence[Sequence[int]]
    _fields_ = [
        ("failed", U32),
        ("kind", ctypes.c_char * 20),
        ("text", ctypes.c_char * 2024),
        ("places", U64 * FRAMES * PLACES),
    ]


class Loaded(NamedTuple):
    """A kernel's object in this process."""

    path: Path
    runtime: ctypes.CDLL
    object: ctypes.CDLL
    entry: int
    threadgroup_memory: int
    section_bytes: int
    arrays: tuple[Span, ...]

    @property
    def threadgroup_bytes(self) -> int:
        """The size of all arrays of threadgroup memory."""
        return sum(span.bytes for span in self.arrays)


@cache
def _runtime(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.em_launch.argtypes = [ctypes.POINTER(_Request), ctypes.POINTER(Report)]
    library.em_launch.restype = None
    return library


def load(runtime: Path, kernel: Path) -> Loaded:
    """The kernel's object, with the runtime that it was linked to."""
    library = _runtime(runtime)
    found = ctypes.CDLL(str(kernel))
    begin, end = (ctypes.c_void_p * 2).in_dll(found, "em_threadgroup_range")
    entry = ctypes.cast(getattr(found, ENTRY), ctypes.c_void_p).value
    assert entry is not None
    size = (end or 0) - (begin or 0)
    spans = arrays(kernel) if size else []
    return Loaded(
        kernel, library, found, entry, begin or 0, size, tuple(spans or [Span("the arrays", 0, size)] * bool(size))
    )


def launch(
    kernel: Loaded,
    arguments: Sequence[Argument],
    groups: tuple[int, int, int],
    threads: tuple[int, int, int],
    order: int,
    checked: bool,
    seed: int,
    patience: float,
) -> Report:
    """Run ``groups`` threadgroups of ``threads`` threads over the arguments, which are in the kernel's order."""
    buffers = (_Buffer * max(1, len(arguments)))()
    for buffer, argument in zip(buffers, arguments):
        buffer.name = argument.name.encode()
        buffer.data = argument.data.ctypes.data
        buffer.bytes = argument.data.nbytes
        buffer.first = argument.first
        buffer.element = argument.element
        buffer.role = argument.role
    spans = (_Span * max(1, len(kernel.arrays)))(
        *[_Span(span.name.encode(), span.offset, span.bytes) for span in kernel.arrays]
    )
    request = _Request(
        kernel.entry,
        kernel.threadgroup_memory,
        kernel.section_bytes,
        spans,
        buffers,
        len(kernel.arrays),
        len(arguments),
        (U32 * 3)(*groups),
        (U32 * 3)(*threads),
        order,
        checked,
        seed & (2**64 - 1),
        patience,
    )
    report = Report()
    kernel.runtime.em_launch(ctypes.byref(request), ctypes.byref(report))
    return report

"""The runtime's structures (``runtime/interface.h``) as Python sees them, and calls of it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
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

    The kernel gets the address of the byte ``first``: below it lies what strides lead back to. ``lies`` says by how
    many bytes the data lie after a multiple of 16.
    """

    name: str
    data: Bytes
    element: int
    role: Role
    first: int = 0
    lies: int = 0


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", U64),
        ("first", U64),
        ("element", U32),
        ("role", U32),
        ("lies", U32),
    ]


class _Span(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("offset", U32), ("bytes", U32), ("element", U32)]


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
        ("padded", U32),
        ("interruptible", U32),
        ("seed", U64),
        ("patience", ctypes.c_double),
    ]


class Report(ctypes.Structure):
    """What went wrong in a launch. ``text`` has placeholders for ``places``; see ``places.py``."""

    failed: int
    interrupted: int
    kind: bytes
    text: bytes
    places: Sequence[Sequence[int]]
    _fields_ = [
        ("failed", U32),
        ("interrupted", U32),
        ("kind", ctypes.c_char * 20),
        ("text", ctypes.c_char * 2020),
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
    elements: tuple[int, ...]
    padded: bool

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


def load(runtime: Path, kernel: Path, elements: Mapping[str, tuple[int, int]], padded: bool) -> Loaded:
    """The kernel's object, with the runtime that it was linked to.

    ``elements`` has what the text tells of each array of threadgroup memory: bytes and number of its elements, or 0.
    ``padded`` says that structures may have bytes that are no member's.
    """
    library = _runtime(runtime)
    found = ctypes.CDLL(str(kernel))
    begin, end = (ctypes.c_void_p * 2).in_dll(found, "em_threadgroup_range")
    entry = ctypes.cast(getattr(found, ENTRY), ctypes.c_void_p).value
    assert entry is not None
    size = (end or 0) - (begin or 0)
    spans = (arrays(kernel) if size else []) or [Span("the arrays", 0, size)] * bool(size)
    sizes = tuple(_element(span, *elements.get(span.name, (0, 0))) for span in spans)
    return Loaded(kernel, library, found, entry, begin or 0, size, tuple(spans), sizes, padded)


def _element(span: Span, element: int, count: int) -> int:
    return element or (span.bytes // count if count and span.bytes % count == 0 else 0)


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
    """Run ``groups`` threadgroups of ``threads`` threads over the arguments, which are in the kernel's order.

    SIGINT ends the run for what its handler in Python does, and if that returns the run begins anew.
    """
    buffers = (_Buffer * max(1, len(arguments)))()
    for buffer, argument in zip(buffers, arguments):
        buffer.name = argument.name.encode()
        buffer.data = argument.data.ctypes.data
        buffer.bytes = argument.data.nbytes
        buffer.first = argument.first
        buffer.element = argument.element
        buffer.role = argument.role
        buffer.lies = argument.lies
    spans = (_Span * max(1, len(kernel.arrays)))(
        *[
            _Span(span.name.encode(), span.offset, span.bytes, element)
            for span, element in zip(kernel.arrays, kernel.elements)
        ]
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
        kernel.padded,
        threading.current_thread() is threading.main_thread(),  # where Python runs what a signal asks for
        seed & (2**64 - 1),
        patience,
    )
    report = Report()
    while True:
        kernel.runtime.em_launch(ctypes.byref(request), ctypes.byref(report))
        # By now Python has raised KeyboardInterrupt, unless the caller's handler wants the program to go on.
        if not report.interrupted:
            return report

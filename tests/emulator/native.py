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

FRAMES = 8
U32, U64 = ctypes.c_uint32, ctypes.c_uint64


class Role(IntEnum):
    """What a buffer is to a kernel. An unused output may stay unwritten."""

    INPUT = 0
    OUTPUT = 1
    UNUSED_OUTPUT = 2


class Argument(NamedTuple):
    """A buffer of a launch: ``element`` is the size of one element in bytes."""

    name: str
    data: Bytes
    element: int
    role: Role


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", U64),
        ("element", U32),
        ("role", U32),
    ]


class _Request(ctypes.Structure):
    _fields_ = [
        ("entry", ctypes.c_void_p),
        ("threadgroup_memory", ctypes.c_void_p),
        ("threadgroup_bytes", U64),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", U32),
        ("groups", U32 * 3),
        ("group_size", U32 * 3),
        ("order", U32),
        ("checked", U32),
        ("seed", U64),
    ]


class Report(ctypes.Structure):
    """What went wrong in a launch. ``text`` may hold {here} and {there}; see ``places``."""

    failed: int
    kind: bytes
    text: bytes
    here: Sequence[int]
    there: Sequence[int]
    _fields_ = [
        ("failed", U32),
        ("kind", ctypes.c_char * 20),
        ("text", ctypes.c_char * 2024),
        ("here", U64 * FRAMES),
        ("there", U64 * FRAMES),
    ]


class Loaded(NamedTuple):
    """A kernel's object in this process."""

    path: Path
    runtime: ctypes.CDLL
    object: ctypes.CDLL
    entry: int
    threadgroup_memory: int
    threadgroup_bytes: int


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
    return Loaded(kernel, library, found, entry, begin or 0, (end or 0) - (begin or 0))


def launch(
    kernel: Loaded,
    arguments: Sequence[Argument],
    groups: tuple[int, int, int],
    threads: tuple[int, int, int],
    order: int,
    checked: bool,
    seed: int,
) -> Report:
    """Run ``groups`` threadgroups of ``threads`` threads over the arguments, in the order of the kernel's parameters."""
    buffers = (_Buffer * max(1, len(arguments)))()
    for buffer, argument in zip(buffers, arguments):
        buffer.name = argument.name.encode()
        buffer.data = argument.data.ctypes.data
        buffer.bytes = argument.data.nbytes
        buffer.element = argument.element
        buffer.role = argument.role
    request = _Request(
        kernel.entry,
        kernel.threadgroup_memory,
        kernel.threadgroup_bytes,
        buffers,
        len(arguments),
        (U32 * 3)(*groups),
        (U32 * 3)(*threads),
        order,
        checked,
        seed & (2**64 - 1),
    )
    report = Report()
    kernel.runtime.em_launch(ctypes.byref(request), ctypes.byref(report))
    return report

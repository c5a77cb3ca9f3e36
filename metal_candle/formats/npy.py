"""One array in NumPy's ``npy`` format: its header parsed without ever evaluating it, its size checked.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any, BinaryIO

import mlx.core as mx

from ..error import NpyError
from ..files import write_atomically
from .raw import DIM_LIMIT, Buffer, element_count, from_bytes, to_bytes
from .reading import OpenFile, shown

MAGIC = b"\x93NUMPY"
HEADER_LIMIT = 1 << 20
"""Longest header in bytes; NumPy's are around a hundred."""

_READ = {
    name: dtype
    for names, dtype in {
        "f2 e": mx.float16,
        "f4 f": mx.float32,
        "f8 d": mx.float64,
        "i2 h": mx.int16,
        "i4 i": mx.int32,
        "i8 q": mx.int64,
        "u1 B b1 ?": mx.uint8,
        "u4 I": mx.uint32,
    }.items()
    for name in names.split()
}
_WRITTEN = {
    mx.float16: "<f2",
    mx.float32: "<f4",
    mx.float64: "<f8",
    mx.int16: "<i2",
    mx.int32: "<i4",
    mx.int64: "<i8",
    mx.uint8: "|u1",
    mx.uint32: "<u4",
}
_TAKES = "takes f2, f4, f8, i2, i4, i8, u1, u4 and b1"


@dataclass(frozen=True)
class Header:
    """What a file holds, and the place of its first element's byte."""

    dtype: mx.Dtype
    shape: tuple[int, ...]
    begin: int

    def byte_count(self) -> int:
        """Bytes of all elements."""
        return element_count(self.shape, DIM_LIMIT**2) * self.dtype.size


# --- reading ----------------------------------------------------------------------------------


def read(path: str | PathLike[str]) -> mx.array:
    """The array of one file; booleans as uint8.

    Raises ``NotFoundError``, ``IoError``, or ``NpyError`` for a damaged file, Fortran order, big-endian numbers
    and dtypes that tensors do not have.
    """
    file = OpenFile(path)
    header = read_header(file.read, file.size, str(file.path))
    return from_bytes(file.read(header.begin, file.size), header.dtype, header.shape)


def parse(data: Buffer, source: str) -> mx.array:
    """The array of a file's bytes; ``source`` is what errors name. Raises ``NpyError`` as ``read``."""
    view = memoryview(data)
    header = read_header(lambda begin, end: view[begin:end], len(view), source)
    return from_bytes(view[header.begin :], header.dtype, header.shape)


def read_header(read: Callable[[int, int], Buffer], size: int, source: str) -> Header:
    """Read and check the header of ``size`` bytes, of which ``read`` gives any part; no element is read."""
    start = bytes(read(0, 12))
    if start[:6] != MAGIC:
        raise NpyError(source, f"no npy file: {size} bytes that start {start[:6]!r}")
    if len(start) < 12:
        raise NpyError(source, f"truncated inside its header at {size} bytes")
    version = start[6], start[7]
    if version == (1, 0):
        begin, length = 10, struct.unpack("<H", start[8:10])[0]
    elif version in ((2, 0), (3, 0)):
        begin, length = 12, struct.unpack("<I", start[8:12])[0]
    else:
        raise NpyError(source, f"npy version {version[0]}.{version[1]}; takes 1.0, 2.0 and 3.0")
    if length > HEADER_LIMIT:
        raise NpyError(source, f"claims a header of {length} bytes; takes at most {HEADER_LIMIT}")
    if begin + length > size:
        raise NpyError(source, f"truncated inside its header at {size} bytes")
    try:
        text = bytes(read(begin, begin + length)).decode("utf-8" if version[0] == 3 else "latin-1")
    except UnicodeDecodeError as error:
        raise NpyError(source, "the header is not text") from error
    header = _header(_parse_fields(text, source), begin + length, source)
    count = element_count(header.shape, size)
    if count > size or header.begin + count * header.dtype.size > size:
        raise NpyError(source, f"truncated: {size} bytes, too few for shape {shown(header.shape)}")
    if header.begin + count * header.dtype.size < size:
        raise NpyError(source, f"{size - header.begin - count * header.dtype.size} bytes follow the last element")
    return header


def _header(fields: dict[str, Any], begin: int, source: str) -> Header:
    descr, shape = fields.get("descr"), fields.get("shape")
    if fields.keys() != {"descr", "fortran_order", "shape"}:
        raise NpyError(source, f"the header has {shown(', '.join(fields))}; takes descr, fortran_order, shape")
    if not isinstance(descr, str) or not isinstance(shape, tuple) or not isinstance(fields["fortran_order"], bool):
        raise NpyError(source, "the header's descr, fortran_order or shape is of another kind")
    if fields["fortran_order"]:
        raise NpyError(source, "is in Fortran order; save numpy.ascontiguousarray of it")
    if descr.startswith(">"):
        raise NpyError(source, f"holds big-endian numbers, {shown(descr)}; takes little-endian ones")
    dtype = _READ.get(descr[1:] if descr[:1] in ("<", "|", "=") else descr)
    if dtype is None:
        raise NpyError(source, f"holds {shown(descr)}; {_TAKES}")
    if max(shape, default=0) > DIM_LIMIT:
        raise NpyError(source, f"shape {shown(shape)}; takes sizes below 2^31")
    return Header(dtype, shape, begin)


# One value or sign of the header's Python: a text, a boolean, an integer, punctuation.
_TOKEN = re.compile(r"""\s*(?:'([^'\\]*)'|"([^"\\]*)"|(True|False)\b|(\d{1,19})L?\b|([{}():,]))""")


def _parse_fields(text: str, source: str) -> dict[str, Any]:
    """The header's dictionary of texts, booleans and tuples of integers; anything else is refused."""
    tokens: list[Any] = []
    place = 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise NpyError(source, f"cannot read the header at {text[place : place + 20].strip()!r}; takes no records")
        single, double, boolean, number, sign = match.groups()
        if sign is not None:
            tokens.append(_Sign(sign))
        elif boolean is not None:
            tokens.append(boolean == "True")
        else:
            tokens.append(int(number) if number is not None else single if double is None else double)
        place = match.end()
    return _Fields(tokens, source).dictionary()


class _Sign(str):
    """Punctuation, which a text of the same letters is not."""

    __slots__ = ()


class _Fields:
    """The grammar ``{text: value, ...}`` where a value is a text, a boolean or a tuple of integers."""

    def __init__(self, tokens: list[Any], source: str) -> None:
        self._tokens, self._place, self._source = tokens, 0, source

    def dictionary(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        self._expect("{")
        while not self._accept("}"):
            name = self._next()
            if type(name) is not str or name in fields:
                raise self._broken()
            self._expect(":")
            fields[name] = self._shape() if self._accept("(") else self._next()
            if not self._accept(","):
                self._expect("}")
                break
        if self._place != len(self._tokens):
            raise self._broken()
        return fields

    def _shape(self) -> tuple[int, ...]:
        sizes = []
        while not self._accept(")"):
            size = self._next()
            if type(size) is not int:
                raise self._broken()
            sizes.append(size)
            if not self._accept(","):
                self._expect(")")
                break
        return tuple(sizes)

    def _next(self) -> Any:
        if self._place >= len(self._tokens) or isinstance(self._tokens[self._place], _Sign):
            raise self._broken()
        self._place += 1
        return self._tokens[self._place - 1]

    def _accept(self, sign: str) -> bool:
        there = self._tokens[self._place] if self._place < len(self._tokens) else None
        found = isinstance(there, _Sign) and there == sign
        self._place += found
        return found

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise self._broken()

    def _broken(self) -> NpyError:
        return NpyError(self._source, "the header is no dictionary of descr, fortran_order and shape")


# --- writing ----------------------------------------------------------------------------------


def save(path: str | PathLike[str], array: mx.array) -> None:
    """Write one file, whole or not at all; NumPy reads it.

    Raises ``NpyError`` for bfloat16, which NumPy lacks, and ``CheckpointError.SaveFailed`` when the file cannot be
    written; an old file is then unchanged.
    """
    header = encode_header(array, str(path))
    with write_atomically(path) as beside, beside.open("wb") as file:
        write(file, header, array)


def write(file: BinaryIO, header: bytes, array: mx.array) -> None:
    """Write a header from ``encode_header`` and the elements into an open file."""
    file.write(header)
    file.write(to_bytes(array))


def encode_header(array: mx.array, source: str) -> bytes:
    """The bytes before the elements: version 1, or 2 where the header is longer than version 1 takes."""
    descr = _WRITTEN.get(array.dtype)
    if descr is None:
        raise NpyError(source, f"cannot hold {str(array.dtype).rpartition('.')[2]}; convert it with to_dtype first")
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {tuple(array.shape)}, }}".encode("latin-1")
    for version, size in ((1, "<H"), (2, "<I")):
        start = len(MAGIC) + 2 + struct.calcsize(size)
        # Padded with spaces and a line's end, so that the elements start at a multiple of 64 bytes.
        padded = text + b" " * (-(start + len(text) + 1) % 64) + b"\n"
        if version == 2 or len(padded) < 1 << 16:
            break
    return MAGIC + bytes([version, 0]) + struct.pack(size, len(padded)) + padded

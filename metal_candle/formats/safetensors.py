"""One safetensors file: its header checked before a byte is trusted, single arrays, whole-or-nothing writing.

The format: 8 bytes little-endian header length, the header as JSON, then the tensors' bytes without gaps.
Specification: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Union

import mlx.core as mx
import numpy as np

from ..error import SafeTensorError, UnsupportedSafeTensorDtypeError
from ..files import parse_json_object, write_atomically
from .raw import DIM_LIMIT, Buffer, element_count, from_bytes, to_bytes
from .reading import OpenFile, shown

DTYPES: dict[str, mx.Dtype] = {
    "F64": mx.float64,
    "F32": mx.float32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "I64": mx.int64,
    "I32": mx.int32,
    "I16": mx.int16,
    "I8": mx.int8,
    "U64": mx.uint64,
    "U32": mx.uint32,
    "U16": mx.uint16,
    "U8": mx.uint8,
    "BOOL": mx.bool_,
}
"""The dtypes that are read and written as arrays."""

# Those the format has beyond them: a file may hold such tensors beside others, which are read.
_OTHER_BITS = {
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}
_BITS = {name: 8 * dtype.size for name, dtype in DTYPES.items()} | _OTHER_BITS

HEADER_LIMIT = 100_000_000
"""Longest header in bytes, the limit of the reference implementation: a damaged length is found at once."""

TOGETHER = 1 << 24
"""How many bytes of neighbouring tensors are read at once."""

PT = {"format": "pt"}
"""The metadata that transformers wants in files of weights."""


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a header; ``begin`` and ``end`` count bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds, without its numbers."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)


# --- reading ----------------------------------------------------------------------------------


class Reader:
    """The checked header of a file or buffer, and its tensors one by one.

    Raises ``NotFoundError``, ``IoError``, or ``SafeTensorError`` when the file is truncated, its offsets
    overlap, leave gaps or leave the file, or a dtype and shape do not give the bytes they claim.
    """

    def __init__(self, source: Union[str, PathLike[str], Buffer], name: str = "buffer") -> None:
        self._bytes: Callable[[int, int], Buffer]
        if isinstance(source, (bytes, bytearray, memoryview)):
            view = memoryview(source).cast("B")
            self.source, self._bytes, size = name, lambda begin, end: view[begin:end], len(view)
        else:
            file = OpenFile(source)
            self.source, self._bytes, size = str(file.path), file.read, file.size
        self.header = _read_header(self.source, self._bytes, size)

    def data(self, name: str, begin: int = 0, end: int | None = None) -> Buffer:
        """The bytes of one tensor, or those from ``begin`` to ``end`` of them; no others are read.

        Raises ``SafeTensorError`` when they are gone.
        """
        info = self.header.tensors[name]
        begin, end = info.begin + begin, info.end if end is None else info.begin + end
        data = self._bytes(begin, end)
        self._expect_whole(name, data, end - begin)
        return data

    def _expect_whole(self, name: str, data: Buffer, size: int) -> None:
        if len(data) != size:
            raise SafeTensorError(self.source, f"tensor {shown(name)}: cut short since the file was opened")

    def array(self, name: str) -> mx.array:
        """One tensor. Raises ``UnsupportedSafeTensorDtypeError`` for a dtype that arrays do not have."""
        return from_bytes(self.data(name), self._dtype(name), self.header.tensors[name].shape)

    def arrays(self) -> dict[str, mx.array]:
        """Every tensor: small ones are read together with their neighbours, which takes half the time. As ``array``."""
        found: dict[str, mx.array] = {}
        names = _by_place(self.header.tensors)
        for first, last in _runs([self.header.tensors[name] for name in names]):
            begin, end = self.header.tensors[names[first]].begin, self.header.tensors[names[last]].end
            whole = memoryview(self._bytes(begin, end))
            for name in names[first : last + 1]:
                info = self.header.tensors[name]
                data = whole[info.begin - begin : info.end - begin]
                self._expect_whole(name, data, info.end - info.begin)
                found[name] = from_bytes(data, self._dtype(name), info.shape)
        return {name: found[name] for name in self.header.tensors}

    def part(self, name: str, dim: int, start: int, stop: int) -> mx.array:
        """A tensor's entries from ``start`` to ``stop`` along ``dim``, both within it; of dim 0 no others are read.

        Raises as ``array``.
        """
        dtype, shape = self._dtype(name), self.header.tensors[name].shape
        row = math.prod(shape[dim + 1 :]) * dtype.size
        if dim == 0:
            data = self.data(name, start * row, stop * row)
        else:
            blocks = np.frombuffer(self.data(name), np.uint8).reshape(math.prod(shape[:dim]), shape[dim] * row)
            data = blocks[:, start * row : stop * row].tobytes()
        return from_bytes(data, dtype, (*shape[:dim], stop - start, *shape[dim + 1 :]))

    def _dtype(self, name: str) -> mx.Dtype:
        dtype = self.header.tensors[name].dtype
        if dtype not in DTYPES:
            raise UnsupportedSafeTensorDtypeError(name, dtype, ", ".join(DTYPES))
        return DTYPES[dtype]


def _by_place(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The names in the order of the tensors' bytes; one without any comes before the one that begins there."""
    return sorted(tensors, key=lambda name: (tensors[name].begin, tensors[name].end))


def _runs(infos: Sequence[TensorInfo]) -> Iterator[tuple[int, int]]:
    """The first and last of neighbours that are read together: up to ``TOGETHER`` bytes, or one larger tensor."""
    first = 0
    for last in range(len(infos)):
        if last + 1 == len(infos) or infos[last + 1].end - infos[first].begin > TOGETHER:
            yield first, last
            first = last + 1


def read_header(path: str | PathLike[str]) -> Header:
    """Read and check the header of one file; the tensors' bytes are not read. Raises as ``Reader``."""
    return Reader(path).header


def load_file(path: str | PathLike[str]) -> dict[str, mx.array]:
    """The tensors of one file, checked by ``read_header`` first; numbers are read when evaluated.

    Raises as ``Reader``, and ``UnsupportedSafeTensorDtypeError`` for dtypes that not every device has: F64, the F8s.
    """
    for name, info in read_header(path).tensors.items():
        if info.dtype not in DTYPES or info.dtype == "F64":
            raise UnsupportedSafeTensorDtypeError(name, info.dtype, ", ".join(n for n in DTYPES if n != "F64"))
    try:
        arrays = mx.load(str(path), format="safetensors")
    except (RuntimeError, ValueError) as error:
        raise SafeTensorError(path, f"MLX cannot read it: {shown(error, 300)}") from error
    assert isinstance(arrays, dict)  # what mx.load gives for safetensors
    return arrays


def _read_header(source: str, read: Callable[[int, int], Buffer], size: int) -> Header:
    length = bytes(read(0, 8))
    if len(length) < 8:
        raise SafeTensorError(source, f"holds {size} bytes, not even a header; fetch or save the file again")
    (header_size,) = struct.unpack("<Q", length)
    if header_size > HEADER_LIMIT:
        raise SafeTensorError(source, f"claims a header of {header_size} bytes; not a safetensors file")
    if 8 + header_size > size:
        raise SafeTensorError(source, f"truncated inside its header at {size} bytes; fetch the file again")
    try:
        text = bytes(read(8, 8 + header_size)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SafeTensorError(source, "the header is not text; not a safetensors file") from error
    entries = parse_json_object(text, "header", lambda reason: SafeTensorError(source, reason), unique=True)
    metadata = entries.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise SafeTensorError(source, "__metadata__ is not an object")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise SafeTensorError(source, f"__metadata__ has {shown(repr(value))} for {shown(key)}; takes texts")
    start = 8 + header_size
    tensors = {name: _tensor_info(source, name, entry, start, size) for name, entry in entries.items()}
    _check_layout(source, tensors, start, size)
    return Header(tensors, metadata)


def _tensor_info(source: str, name: str, entry: Any, start: int, size: int) -> TensorInfo:
    def refused(reason: str) -> SafeTensorError:
        return SafeTensorError(source, f"tensor {shown(name)}{reason}")

    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise refused(": the entry lacks dtype, shape or data_offsets") from error
    if any(type(number) is not int or number < 0 for number in sizes):
        raise refused(f": shape {shown(shape)} or offsets {shown(begin)}, {shown(end)} are no sizes")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise refused(f" is {shown(repr(dtype))}, which is no dtype of the format")
    if max(shape, default=0) > DIM_LIMIT:
        raise refused(f": shape {shown(tuple(shape))}; takes sizes below 2^31")
    bits = element_count(shape, 8 * size) * _BITS[dtype]
    if bits != 8 * (end - begin):
        wanted = f"{bits // 8} bytes" if bits <= 8 * size else f"more than the file's {size} bytes"
        raise refused(f": {dtype} {shown(tuple(shape))} is {wanted}, not {shown(end - begin)}")
    return TensorInfo(dtype, tuple(shape), start + begin, start + end)


def _check_layout(source: str, tensors: dict[str, TensorInfo], start: int, size: int) -> None:
    """The tensors lie one behind the other from the header's end to the file's end."""
    position = start
    for name in _by_place(tensors):
        info = tensors[name]
        if info.begin != position:
            kind = "overlaps the one before it" if info.begin < position else "leaves a gap before it"
            raise SafeTensorError(source, f"tensor {shown(name)} {kind}")
        position = info.end
    if position > size:
        raise SafeTensorError(source, f"truncated: {size} bytes of {shown(position)}; fetch the file again")
    if position < size:
        raise SafeTensorError(source, f"{size - position} bytes follow the last tensor")


# --- writing ----------------------------------------------------------------------------------


def save(path: str | PathLike[str], arrays: Mapping[str, mx.array], metadata: Mapping[str, str] | None = None) -> None:
    """Write one file, whole or not at all; array by array, so that memory stays at the largest of them.

    Raises ``CheckpointError.SaveFailed`` when the file cannot be written, ``SafeTensorError`` for a dtype the
    format lacks and for names or metadata it cannot hold; an old file is then unchanged.
    """
    with write_atomically(path) as beside, beside.open("wb") as file:
        write(file, arrays, metadata, path)


def write(
    file: BinaryIO, arrays: Mapping[str, mx.array], metadata: Mapping[str, str] | None, path: str | PathLike[str]
) -> None:
    """Write the format into an open file; ``path`` is what errors name."""
    # Widest dtypes first keep every tensor aligned to its element, as the reference implementation does.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.size, item[0]))
    header = _header(ordered, metadata, Path(path))
    file.write(struct.pack("<Q", len(header)) + header)
    for _, array in ordered:
        file.write(to_bytes(array))


def _header(
    ordered: list[tuple[str, mx.array]], metadata: Mapping[str, str] | None, path: str | PathLike[str]
) -> bytes:
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {}
    if metadata is not None:
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise SafeTensorError(path, "metadata: takes texts for texts")
        entries["__metadata__"] = dict(metadata)
    position = 0
    for name, array in ordered:
        if array.dtype not in names:
            raise SafeTensorError(path, f"tensor {shown(name)} is {array.dtype}; takes {', '.join(DTYPES)}")
        if name == "__metadata__":
            raise SafeTensorError(path, "no tensor can have the name __metadata__")
        end = position + array.nbytes
        entries[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    try:
        header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise SafeTensorError(path, f"a name or metadata is no Unicode text: {shown(error.object)}") from error
    header += b" " * (-len(header) % 8)
    if len(header) > HEADER_LIMIT:
        raise SafeTensorError(path, f"a header of {len(header)} bytes; takes at most {HEADER_LIMIT}")
    return header

"""The GGUF container: its header, read with every count and offset checked against the file's size.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ...error import ModelError
from .gguf_blocks import BLOCKS

_TYPES = {block.number: name for name, block in BLOCKS.items()}
# fmt: off
_OTHER_TYPES = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
}
# fmt: on

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# The shortest a key/value pair and a tensor entry can be: empty names, one byte, no dimensions.
_PAIR_BYTES, _ENTRY_BYTES = 8 + 4 + 1, 8 + 4 + 4 + 8


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: its type's name, its shape in row-major order, and where its bytes are in the file."""

    type: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file holds, without its numbers; metadata as plain Python values and lists."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf_header(path: str | PathLike[str]) -> GGUFHeader:
    """Read and check the header of a GGUF file.

    Raises ``ModelError.FileNotFound``; ``ModelError.IncompatibleVersion`` for another version; and
    ``ModelError.InvalidFormat`` when the file is no GGUF, is truncated, holds a tensor type that is not
    read (the message names it and lists those that are), or an offset leaves the file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise _invalid(path, "the file is empty; fetch it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header()
    except FileNotFoundError as error:
        raise ModelError.FileNotFound(path=path) from error
    except OSError as error:
        if isinstance(error, ModelError):
            raise
        raise _invalid(path, error.strerror or str(error)) from error


def _invalid(path: Path, reason: str) -> ModelError:
    return ModelError.InvalidFormat(reason=f"{path}: {reason}")


class _Reader:
    """A position in the mapped file; every read checks that it stays inside."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.position = path, data, len(data), 0

    def invalid(self, reason: str) -> ModelError:
        return _invalid(self.path, reason)

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > self.size:
            raise self.invalid(f"truncated inside its header at {self.size} bytes; fetch the file again")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        taken = self.take(self.number("Q"))
        try:
            return taken.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.invalid(f"text at byte {self.position - len(taken)} is not UTF-8") from error

    def count(self, least_bytes: int, what: str) -> int:
        """A number of things of at least so many bytes each: more cannot be in the rest of the file."""
        count: int = self.number("Q")
        if count * least_bytes > self.size - self.position:
            raise self.invalid(f"claims {count} {what}, more than its {self.size} bytes hold; truncated?")
        return count

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise self.invalid(f"metadata of unknown type {kind}")
        inner = self.number("I")
        if inner == _STRING:
            return [self.text() for _ in range(self.count(8, "strings"))]
        if inner not in _SCALARS:
            raise self.invalid(f"metadata array of unsupported type {inner}")
        code = _SCALARS[inner]
        count = self.count(struct.calcsize(code), "numbers")
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))

    def header(self) -> GGUFHeader:
        if self.take(min(4, self.size)) != b"GGUF":
            raise self.invalid("not a GGUF file: it does not start with GGUF")
        version: int = self.number("I")
        if version not in (2, 3):
            big = " (big-endian)" if version in (2 << 24, 3 << 24) else ""
            raise ModelError.IncompatibleVersion(expected="GGUF 2 or 3", found=f"{version}{big} in {self.path}")
        entry_count = self.count(_ENTRY_BYTES, "tensors")
        pair_count = self.count(_PAIR_BYTES, "metadata keys")
        metadata = {self.text(): self.value(self.number("I")) for _ in range(pair_count)}
        entries = [self.entry() for _ in range(entry_count)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise self.invalid(f"general.alignment is {alignment!r}; takes a number above 0")
        start = -(-self.position // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, type_name, shape, offset in entries:
            _, elements, block_bytes = BLOCKS[type_name]
            begin = start + offset
            end = begin + math.prod(shape) // elements * block_bytes
            if name in tensors:
                raise self.invalid(f"tensor {name} is there twice")
            if end > self.size:
                raise self.invalid(f"truncated: tensor {name} ends at byte {end} of {self.size}; fetch it again")
            tensors[name] = GGUFTensor(type_name, shape, begin, end)
        return GGUFHeader(version, metadata, tensors)

    def entry(self) -> tuple[str, str, tuple[int, ...], int]:
        """A tensor's name, type, row-major shape, and offset from where the data start."""
        name = self.text()
        rank = self.number("I")
        if rank > 4:
            raise self.invalid(f"tensor {name} has {rank} dimensions; takes up to 4")
        shape = tuple(reversed([self.number("Q") for _ in range(rank)]))  # the file says the fastest first
        if 0 in shape:
            raise self.invalid(f"tensor {name} is empty: shape {shape}")
        kind, offset = self.number("I"), self.number("Q")
        if kind not in _TYPES:
            found = _OTHER_TYPES.get(kind, f"of type {kind}")
            raise self.invalid(f"tensor {name} is {found}, which is not read; takes {', '.join(BLOCKS)}")
        elements = BLOCKS[_TYPES[kind]].elements
        if shape and shape[-1] % elements:
            raise self.invalid(f"tensor {name}: rows of {shape[-1]} do not divide into blocks of {elements}")
        return name, _TYPES[kind], shape, offset

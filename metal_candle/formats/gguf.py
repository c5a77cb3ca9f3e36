"""The GGUF container: its header, read with every count and offset checked against the file's size.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 1, 2 and 3, little-endian).
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..error import ModelError
from .byte_reader import ByteReader, Source, opened
from .ggml_blocks import BLOCKS, TYPES, Bytes, byte_count
from .gguf_value import CODES, MAX_NESTING, Value, ValueType
from .reading import shown

DEFAULT_ALIGNMENT = 32
MAX_RANK = 4

# fmt: off
_OTHER_TYPES = {
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}
# fmt: on


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: its type's name, its shape in row-major order, and where its bytes are in the file."""

    type: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file holds, without its numbers; ``data_start`` is where those begin."""

    version: int
    values: dict[str, Value]
    tensors: dict[str, GGUFTensor]
    data_start: int

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The metadata as plain Python values and lists."""
        return {key: value.plain() for key, value in self.values.items()}


def read_gguf_header(source: Source) -> GGUFHeader:
    """Read and check the header of a GGUF file.

    Raises ``NotFoundError`` and ``IoError``; ``ModelError.IncompatibleVersion`` for another version; and
    ``ModelError.InvalidFormat`` when the file is no GGUF, is truncated, holds a tensor type that is not
    read (the message names it and lists those that are), or tensors leave the file or overlap.
    """
    with opened(source) as reader:
        return _Header(reader).read()


def read_tensor_bytes(source: Source, tensor: GGUFTensor) -> Bytes:
    """One tensor's blocks, flat, copied. Raises ``ModelError.InvalidFormat`` if the file is shorter by now."""
    with opened(source) as reader:
        reader.move(tensor.begin)
        return np.frombuffer(reader.take(tensor.end - tensor.begin, "a tensor"), np.uint8)


class _Header:
    """The header's parts, in the order of the file. Lengths and counts are U32 in version 1, U64 since."""

    def __init__(self, reader: ByteReader) -> None:
        self.reader, self.length = reader, "Q"

    def string(self) -> str:
        return self.reader.text(self.reader.number(self.length))

    def value(self, number: int, depth: int = 0) -> Value:
        kind = self.value_type(number)
        if kind is ValueType.String:
            return Value(kind, self.string())
        if kind is not ValueType.Array:
            return Value(kind, self.scalars(kind, 1)[0])
        if depth == MAX_NESTING:
            raise self.reader.invalid(f"metadata arrays nested more than {MAX_NESTING} deep")
        inner = self.value_type(self.reader.number("I"))
        width = struct.calcsize(self.length)
        if inner is ValueType.String:
            return Value(kind, [self.string() for _ in range(self.reader.count(self.length, width, "strings"))], inner)
        if inner is ValueType.Array:
            count = self.reader.count(self.length, 4 + width, "arrays")
            return Value(kind, [self.value(number, depth + 1) for _ in range(count)], inner)
        count = self.reader.count(self.length, struct.calcsize(CODES[inner]), "numbers")
        return Value(kind, self.scalars(inner, count), inner)

    def value_type(self, number: int) -> ValueType:
        if number not in ValueType._value2member_map_:
            raise self.reader.invalid(f"metadata of unknown type {number}")
        return ValueType(number)

    def scalars(self, kind: ValueType, count: int) -> list[Any]:
        if kind is not ValueType.Bool:
            return self.reader.numbers(CODES[kind], count)
        taken = self.reader.take(count)
        if max(taken, default=0) > 1:
            raise self.reader.invalid(f"a boolean before byte {self.reader.position} is {max(taken)}; takes 0 or 1")
        return [byte == 1 for byte in taken]

    def read(self) -> GGUFHeader:
        if self.reader.take(min(4, self.reader.size)) != b"GGUF":
            raise self.reader.invalid("not a GGUF file: it does not start with GGUF")
        version: int = self.reader.number("I")
        if version not in (1, 2, 3):
            big = " (big-endian)" if version in (1 << 24, 2 << 24, 3 << 24) else ""
            raise ModelError.IncompatibleVersion(
                expected="GGUF 1, 2 or 3", found=f"{version}{big} in {self.reader.name}"
            )
        self.length = "I" if version == 1 else "Q"
        width = struct.calcsize(self.length)
        # The shortest an entry or a pair can be: empty names, no dimensions, one byte.
        entry_count = self.reader.count(self.length, width + 4 + 4 + 8, "tensors")
        pair_count = self.reader.count(self.length, width + 4 + 1, "metadata keys")
        values: dict[str, Value] = {}
        for _ in range(pair_count):
            key = self.string()
            if key in values:
                raise self.reader.invalid(f"metadata key {shown(key)} is there twice")
            values[key] = self.value(self.reader.number("I"))
        entries = [self.entry() for _ in range(entry_count)]
        alignment = self.alignment(values)
        start = -(-self.reader.position // alignment) * alignment
        return GGUFHeader(version, values, self.placed(entries, start, alignment), start)

    def alignment(self, values: dict[str, Value]) -> int:
        given = values.get("general.alignment")
        alignment = DEFAULT_ALIGNMENT if given is None else given.plain()
        if type(alignment) is not int or alignment < 1:
            raise self.reader.invalid(f"general.alignment is {shown(repr(alignment))}; takes a number above 0")
        return alignment

    def placed(
        self, entries: list[tuple[str, str, tuple[int, ...], int]], start: int, alignment: int
    ) -> dict[str, GGUFTensor]:
        """The tensors with their places in the file, which have to be inside it and apart."""
        tensors: dict[str, GGUFTensor] = {}
        for name, kind, shape, offset in entries:
            begin = start + offset
            end = begin + byte_count(kind, math.prod(shape))
            if name in tensors:
                raise self.reader.invalid(f"tensor {shown(name)} is there twice")
            if offset % alignment:
                raise self.reader.invalid(
                    f"tensor {shown(name)} starts at {offset}, which is no multiple of {alignment}"
                )
            if end > self.reader.size:
                raise self.reader.invalid(
                    f"truncated: tensor {shown(name)} ends at byte {end} of {self.reader.size}; fetch it again"
                )
            tensors[name] = GGUFTensor(kind, shape, begin, end)
        ordered = sorted(tensors, key=lambda name: tensors[name].begin)
        for first, second in itertools.pairwise(ordered):
            if tensors[first].end > tensors[second].begin:
                raise self.reader.invalid(
                    f"tensors {shown(first)} and {shown(second)} overlap at byte {tensors[second].begin}"
                )
        return tensors

    def entry(self) -> tuple[str, str, tuple[int, ...], int]:
        """A tensor's name, type, row-major shape, and offset from where the data start."""
        name = self.string()
        rank = self.reader.number("I")
        if not 1 <= rank <= MAX_RANK:
            raise self.reader.invalid(f"tensor {shown(name)} has {rank} dimensions; takes 1 to {MAX_RANK}")
        shape = tuple(reversed(self.reader.numbers(self.length, rank)))  # the file says the fastest first
        if 0 in shape:
            raise self.reader.invalid(f"tensor {shown(name)} is empty: shape {shape}")
        number, offset = self.reader.number("I"), self.reader.number("Q")
        if number not in TYPES:
            found = _OTHER_TYPES.get(number, f"of type {number}")
            raise self.reader.invalid(f"tensor {shown(name)} is {found}, which is not read; takes {', '.join(BLOCKS)}")
        elements, row = BLOCKS[TYPES[number]].elements, shape[-1]
        if row % elements:
            raise self.reader.invalid(f"tensor {shown(name)}: rows of {row} do not divide into blocks of {elements}")
        return name, TYPES[number], shape, offset

"""Writing the GGUF container: version 3, little-endian.

candle writes version 2, whose layout is the same; 3 is what ggml writes, and both readers take either.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple, TypeAlias

from ..error import Error
from ..error.text import shown
from ..files import write_all, write_atomically
from .byte_reader import name_of
from .ggml_blocks import BLOCKS, Bytes
from .gguf import DEFAULT_ALIGNMENT, MAX_RANK
from .gguf_value import CODES, MAX_NESTING, Value, ValueType

Target: TypeAlias = "str | os.PathLike[str] | IO[bytes]"


class Entry(NamedTuple):
    """One tensor to write: its name, ggml type, row-major shape, and blocks."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: Bytes


def write_gguf(target: Target, metadata: Mapping[str, Value], tensors: Sequence[Entry]) -> None:
    """Write a GGUF file; at a path whole or not at all. ``general.alignment`` among the metadata is kept to.

    Everything is checked before the first byte is written. Raises ``Error`` for a tensor twice, without elements or
    of other than one to four dimensions, for text that is no Unicode, arrays nested deeper than the reader takes and an
    alignment below 1; and
    ``CheckpointError.SaveFailed`` where a path cannot be written, ``IoError`` for an open file.
    """
    header, padding = _header(metadata, tensors)
    if isinstance(target, (str, os.PathLike)):
        with write_atomically(target) as beside, beside.open("wb") as file:
            _write(file, name_of(target), header, tensors, padding)
    elif hasattr(target, "write"):
        _write(target, name_of(target), header, tensors, padding)
    else:
        raise Error(f"gguf write: got {type(target).__name__}; takes a path or a binary file")


def _write(file: IO[bytes], name: str, header: bytes, tensors: Sequence[Entry], padding: Sequence[int]) -> None:
    write_all(file, header, name)
    for tensor, pad in zip(tensors, padding):
        write_all(file, tensor.data.data, name)
        write_all(file, bytes(pad), name)


def _header(metadata: Mapping[str, Value], tensors: Sequence[Entry]) -> tuple[bytes, list[int]]:
    """Everything before the numbers, and the zeros behind each tensor."""
    alignment = _alignment(metadata)
    twice = [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]
    if twice:
        raise Error(f"gguf write: tensor {shown(twice[0])} is there twice")
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), struct.pack("<I", value.value_type()), _value(value)]
    offset, padding = 0, []
    for tensor in tensors:
        parts.append(_entry(tensor, offset))
        padding.append(-tensor.data.size % alignment)
        offset += tensor.data.size + padding[-1]
    header = b"".join(parts)
    return header + bytes(-len(header) % alignment), padding


def _alignment(metadata: Mapping[str, Value]) -> int:
    given = metadata.get("general.alignment")
    if given is None:
        return DEFAULT_ALIGNMENT
    if given.value_type() is not ValueType.U32 or given.to_u32() < 1:
        raise Error(f"gguf write: general.alignment is {shown(repr(given))}; takes a U32 above 0")
    return given.to_u32()


def _entry(tensor: Entry, offset: int) -> bytes:
    name, kind, shape, _ = tensor
    if not 1 <= len(shape) <= MAX_RANK or 0 in shape:
        raise Error(
            f"gguf write: tensor {shown(name)} has shape {shape}; takes 1 to {MAX_RANK} dimensions, none of size 0"
        )
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))  # the fastest first
    return _text(name) + dims + struct.pack("<IQ", BLOCKS[kind].number, offset)


def _text(text: str) -> bytes:
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Error(f"gguf write: text {shown(repr(text))} has half of a surrogate pair; takes Unicode") from error
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Value, depth: int = 0) -> bytes:
    kind = value.value_type()
    if kind is ValueType.String:
        return _text(value.to_string())
    if kind is not ValueType.Array:
        return struct.pack("<" + CODES[kind], value.plain())
    if depth == MAX_NESTING:
        raise Error(f"gguf write: metadata arrays nested more than {MAX_NESTING} deep")
    element = value.element_type()
    assert element is not None, "an array knows its type"
    values: list[Any] = value.to_vec() if element is ValueType.Array else value.plain()
    head = struct.pack("<IQ", element, len(values))
    if element is ValueType.Array:
        return head + b"".join(_value(inner, depth + 1) for inner in values)
    if element is ValueType.String:
        return head + b"".join(_text(text) for text in values)
    return head + struct.pack(f"<{len(values)}{CODES[element]}", *values)

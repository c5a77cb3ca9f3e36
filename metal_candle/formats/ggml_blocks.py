"""ggml's element types: how their blocks are laid out, and what numbers they hold.

A block is a scale (and a minimum) with the small integers of 32 or 256 elements. Layouts:
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. The K-quants' packing is left to the ``gguf``
package, an extra.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..error import Error

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]


class Block(NamedTuple):
    """How a type is laid out: its number in the file, elements and bytes per block."""

    number: int
    elements: int
    bytes: int


BLOCKS = {
    "F32": Block(0, 1, 4),
    "F16": Block(1, 1, 2),
    "BF16": Block(30, 1, 2),
    "Q4_0": Block(2, 32, 18),
    "Q4_1": Block(3, 32, 20),
    "Q5_0": Block(6, 32, 22),
    "Q5_1": Block(7, 32, 24),
    "Q8_0": Block(8, 32, 34),
    "Q8_1": Block(9, 32, 36),
    "Q2_K": Block(10, 256, 84),
    "Q3_K": Block(11, 256, 110),
    "Q4_K": Block(12, 256, 144),
    "Q5_K": Block(13, 256, 176),
    "Q6_K": Block(14, 256, 210),
    "Q8_K": Block(15, 256, 292),
}
"""Every type that is read, by ggml's name."""

TYPES = {block.number: name for name, block in BLOCKS.items()}
"""Their names, by the number that stands in a file."""

_BY_GGUF = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_FLOATS = ("F32", "F16", "BF16")


class Codes(NamedTuple):
    """Blocks taken apart: element = scale · (code − offset) + minimum, code from 0 to 2^bits − 1.

    ``codes`` is uint8 ``(blocks, 32)``, ``scales`` and ``minima`` float32 ``(blocks, 1)``; ``minima`` is ``None``
    for types without one.
    """

    codes: Bytes
    scales: Floats
    minima: Floats | None
    offset: int
    bits: int


def byte_count(kind: str, elements: int) -> int:
    """Bytes that so many elements take, which have to be whole blocks."""
    block = BLOCKS[kind]
    return elements // block.elements * block.bytes


def decode(raw: Bytes, kind: str) -> Floats:
    """The numbers of rows of blocks: uint8 ``(rows, bytes)`` -> float32 ``(rows, elements)``.

    Scales are widened to float32 before they multiply, so that the result is exact to the last bit. Raises
    ``Error`` for a K-quant where the ``gguf`` package is missing.
    """
    rows = raw.shape[0]
    if kind in _FLOATS:
        return _floats(np.ascontiguousarray(raw), kind)
    if kind in _BY_GGUF:
        return _through_gguf(raw, kind)
    if kind == "Q8_K":
        blocks = np.ascontiguousarray(raw).reshape(-1, BLOCKS[kind].bytes)
        return (blocks[:, 4:260].view(np.int8) * _numbers(blocks[:, :4], "<f4")).reshape(rows, -1)
    codes, scales, minima, offset, _ = take_apart(raw, kind)
    signed = (codes ^ np.uint8(0x80)).view(np.int8) if offset == 128 else codes.view(np.int8) - np.int8(offset)
    with np.errstate(all="ignore"):  # a scale may be infinite or NaN, and so are the numbers then
        out: Floats = scales * signed
        if minima is not None:
            out += minima
    return out.reshape(rows, -1)


def take_apart(raw: Bytes, kind: str) -> Codes:
    """Blocks of 32 elements as codes, scales and minima. Takes Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q8_1."""
    blocks = np.ascontiguousarray(raw).reshape(-1, BLOCKS[kind].bytes)
    scales = _numbers(blocks[:, :2], "<f2")
    if kind in ("Q8_0", "Q8_1"):
        # Q8_1 has the sum of its elements beside the scale, which only integer products need.
        codes = blocks[:, 2 if kind == "Q8_0" else 4 :]
        return Codes(codes ^ np.uint8(0x80), scales, None, 128, 8)
    minima = _numbers(blocks[:, 2:4], "<f2") if kind.endswith("_1") else None
    packed = blocks[:, -16:]
    codes = np.concatenate([packed & 15, packed >> 4], axis=1)
    if kind.startswith("Q4"):
        return Codes(codes, scales, minima, 8 if minima is None else 0, 4)
    high = np.unpackbits(blocks[:, -20:-16], axis=1, bitorder="little")
    np.bitwise_or(codes, high << 4, out=codes)
    return Codes(codes, scales, minima, 16 if minima is None else 0, 5)


def _numbers(columns: Bytes, dtype: str) -> Floats:
    return np.ascontiguousarray(columns).view(dtype).astype(np.float32)


def _floats(raw: Bytes, kind: str) -> Floats:
    if kind == "F32":
        return raw.view("<f4")
    if kind == "F16":
        return raw.view("<f2").astype(np.float32)
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _through_gguf(raw: Bytes, kind: str) -> Floats:
    try:
        import gguf
    except ImportError as error:
        raise Error(f'{kind}: is read with the gguf package: pip install "metal-candle[gguf]"') from error
    with np.errstate(all="ignore"):
        numbers: Floats = gguf.quants.dequantize(np.ascontiguousarray(raw), gguf.GGMLQuantizationType[kind])
    return numbers

"""ggml's blocks of 32, and of 8 · 32, as the operands of MLX's affine quantisation, without loss.

MLX reads ``scale · code + bias`` with codes packed as one little-endian stream of bits per row. The products are
exact in float32 (11 bits of scale times at most 8 of code), so that the numbers are those of ``decode``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .ggml_blocks import BLOCKS, Bytes, Codes, Floats, take_apart

GROUP = 32
AFFINE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1")
"""The types of blocks of 32 that can be repacked."""
K_AFFINE = ("Q4_K", "Q5_K")
"""The K-quants that can be repacked, too: the others' groups are of 16, which MLX lacks."""

# Elements that are repacked at a time: their codes take a byte each on the way.
_CHUNK = 1 << 22

Scales: TypeAlias = "np.ndarray[Any, np.dtype[np.float16 | np.float32]]"


class Affine(NamedTuple):
    """``codes`` uint32 ``(rows, in · bits / 32)``, ``scales`` and ``biases`` ``(rows, in / 32)``, bits per code.

    Scales and biases are float16 where that holds them exactly, else float32.
    """

    codes: np.ndarray[Any, np.dtype[np.uint32]]
    scales: Scales
    biases: Scales
    bits: int


def repack(raw: Bytes, kind: str) -> Affine | None:
    """Rows of blocks, uint8 ``(rows, bytes)``, repacked; ``None`` if a scale is infinite or NaN.

    (``scale · code − scale · offset`` is NaN then where ``scale · (code − offset)`` is infinite.) Beside the result
    there is never more than a part of the codes.
    """
    width = raw.shape[1] // BLOCKS[kind].bytes * BLOCKS[kind].elements
    step = max(1, _CHUNK // max(1, width))
    parts = []
    for start in range(0, max(1, len(raw)), step):
        part = _repacked(raw[start : start + step], kind)
        if part is None:
            return None
        parts.append(part)
    codes, scales, biases = (np.concatenate([part[place] for part in parts]) for place in range(3))
    return Affine(codes, scales, biases, parts[0].bits)


def _repacked(raw: Bytes, kind: str) -> Affine | None:
    rows = len(raw)
    codes, scales, minima, offset, bits = _take_k_apart(raw, kind) if kind in K_AFFINE else take_apart(raw, kind)
    biases = scales * np.float32(-offset) if minima is None else minima
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        return None
    packed = np.ascontiguousarray(_stream(codes, bits)).reshape(rows, -1).view("<u4")
    return Affine(packed, _smallest(scales.reshape(rows, -1)), _smallest(biases.reshape(rows, -1)), bits)


def _take_k_apart(raw: Bytes, kind: str) -> Codes:
    """Blocks of 256 as eight of 32: element = (d · scale) · code − (dmin · minimum), both exact in float32.

    The eight scales and minima are 6 bits each, packed into 12 bytes; codes of two groups share bytes, and in Q5_K the
    fifth bits of all groups do.
    """
    blocks = np.ascontiguousarray(raw).reshape(-1, BLOCKS[kind].bytes)
    d, least = (np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32) for at in (0, 2))
    packed = blocks[:, 4:16]
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=1)
    nibbles = blocks[:, -128:].reshape(-1, 4, 1, 32)
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(-1, 8, 32)
    if kind == "Q5_K":
        fifth = blocks[:, 16:48, None] >> np.arange(8, dtype=np.uint8) & 1
        codes = codes | (fifth.swapaxes(1, 2) << 4)
    columns = (-1, 1)
    with np.errstate(all="ignore"):  # d may be infinite
        return Codes(
            codes.reshape(-1, 32),
            (d * scales).reshape(columns),
            -(least * minima).reshape(columns),
            0,
            4 if kind == "Q4_K" else 5,
        )


def _stream(codes: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return codes
    if bits == 4:
        pairs: Bytes = np.bitwise_or(codes[:, 0::2], codes[:, 1::2] << 4, dtype=np.uint8)
        return pairs
    # Eight codes of five bits are five bytes.
    eights = codes.reshape(-1, 8).astype("<u8") << np.arange(0, 40, 5, dtype=np.uint64)
    joined = np.bitwise_or.reduce(eights, axis=1)
    stream: Bytes = joined[:, None].view(np.uint8)[:, :5]
    return stream


def _smallest(numbers: Floats) -> Scales:
    with np.errstate(over="ignore"):
        half = numbers.astype(np.float16)
    return half if np.array_equal(half, numbers) else numbers

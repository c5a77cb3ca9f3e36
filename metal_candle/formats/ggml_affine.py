"""ggml's blocks of 32 as the operands of MLX's affine quantisation, without loss.

MLX reads ``scale · code + bias`` with codes packed as one little-endian stream of bits per row. The products are
exact in float32 (11 bits of scale times at most 8 of code), so that the numbers are those of ``decode``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .ggml_blocks import BLOCKS, Bytes, Floats, take_apart

GROUP = 32
AFFINE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1")
"""The types that can be repacked."""

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
    width = raw.shape[1] // BLOCKS[kind].bytes * GROUP
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
    codes, scales, minima, offset, bits = take_apart(raw, kind)
    biases = scales * np.float32(-offset) if minima is None else minima
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        return None
    packed = np.ascontiguousarray(_stream(codes, bits)).reshape(rows, -1).view("<u4")
    return Affine(packed, _smallest(scales.reshape(rows, -1)), _smallest(biases.reshape(rows, -1)), bits)


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

"""Numbers into ggml's blocks, as its reference quantisation rounds them.

Source: ``quantize_row_*_ref`` of https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c, computed in
float32 without fused multiplication and addition, as candle does. NaN counts as 0.
"""

from __future__ import annotations

import numpy as np

from ..error import Error
from .ggml_blocks import BLOCKS, Bytes, Floats, byte_count

ENCODED = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1")
"""The types that are written."""

# So that the copies on the way stay small beside a large matrix.
_CHUNK = 1 << 20


def encode(values: Floats, kind: str) -> Bytes:
    """Numbers as blocks, flat: float32 of any shape, whole blocks of them -> uint8 ``(bytes,)``.

    What exceeds the range of a float16 scale becomes infinite, as in ggml. Raises ``Error`` for K-quants.
    """
    if kind not in ENCODED:
        raise Error(f"quantize: {kind} is only read; takes {', '.join(ENCODED)}")
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    out = np.empty(byte_count(kind, flat.size), np.uint8)
    with np.errstate(all="ignore"):  # infinities and NaN in, infinities and NaN out
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            begin = byte_count(kind, start)
            out[begin : begin + byte_count(kind, part.size)] = _encode(part, kind)
    return out


def _encode(flat: Floats, kind: str) -> Bytes:
    if kind == "F32":
        return flat.astype("<f4").view(np.uint8)
    if kind == "F16":
        return flat.astype("<f2").view(np.uint8)
    if kind == "BF16":
        return _bfloat16(flat)
    blocks = flat.reshape(-1, BLOCKS[kind].elements)
    if kind in ("Q8_0", "Q8_1"):
        packed = _eight_bits(blocks, with_sum=kind == "Q8_1")
    else:
        packed = _few_bits(blocks, bits=int(kind[1]), with_minimum=kind.endswith("_1"))
    return packed.reshape(-1)


def _bfloat16(flat: Floats) -> Bytes:
    """The upper halves, rounded to the nearest, to even between two; NaN stays NaN."""
    bits = flat.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(flat), quiet, rounded).astype("<u2").view(np.uint8)


def _eight_bits(blocks: Floats, with_sum: bool) -> Bytes:
    known = np.nan_to_num(blocks, nan=0.0, posinf=np.inf, neginf=-np.inf)
    scale = np.abs(known).max(axis=1, keepdims=True) / np.float32(127)
    codes = _saturated(_half_away(known * _inverse(scale)), -128, 127).astype(np.int8)
    head = [_half(scale)]
    if with_sum:
        head.append(_half(scale * codes.sum(axis=1, keepdims=True, dtype=np.int32).astype(np.float32)))
    return np.concatenate([*head, codes.view(np.uint8)], axis=1)


def _few_bits(blocks: Floats, bits: int, with_minimum: bool) -> Bytes:
    top = (1 << bits) - 1
    known = np.nan_to_num(blocks, nan=0.0, posinf=np.inf, neginf=-np.inf)
    if with_minimum:
        # fmin and fmax: a NaN is no minimum. A block of nothing else is 0.
        minimum = np.fmin.reduce(blocks, axis=1, keepdims=True)
        maximum = np.fmax.reduce(blocks, axis=1, keepdims=True)
        minimum, maximum = (np.where(np.isnan(bound), np.float32(0), bound) for bound in (minimum, maximum))
        scale = (maximum - minimum) / np.float32(top)
        shifted = (blocks - minimum) * _inverse(scale) + np.float32(0.5)
        head = [_half(scale), _half(minimum)]
    else:
        largest = np.take_along_axis(known, np.abs(known).argmax(axis=1)[:, None], axis=1)
        scale = largest / np.float32(-(1 << (bits - 1)))
        shifted = blocks * _inverse(scale) + np.float32((1 << (bits - 1)) + 0.5)
        head = [_half(scale)]
    codes = _saturated(np.trunc(shifted), 0, top).astype(np.uint8)
    if bits == 5:
        head.append(np.packbits(codes >> 4, axis=1, bitorder="little"))
    nibbles = codes & 15
    packed: Bytes = np.concatenate([*head, nibbles[:, :16] | (nibbles[:, 16:] << 4)], axis=1)
    return packed


def _inverse(scale: Floats) -> Floats:
    inverse: Floats = np.where(scale != 0, np.float32(1) / scale, np.float32(0))
    return inverse


def _half_away(values: Floats) -> Floats:
    """Rounded to the nearest, away from 0 between two; adding 0.5 alone would round 0.49999997 up."""
    whole = np.trunc(values)
    rounded: Floats = whole + np.copysign(np.abs(values - whole) >= np.float32(0.5), values).astype(np.float32)
    return rounded


def _saturated(values: Floats, low: int, high: int) -> Floats:
    clipped: Floats = np.clip(np.nan_to_num(values, nan=0.0), low, high)
    return clipped


def _half(numbers: Floats) -> Bytes:
    return numbers.astype("<f2").view(np.uint8)

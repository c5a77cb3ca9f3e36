"""The block types of GGUF that are read, and their numbers: scales and small integers, 32 at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


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
    "Q8_0": Block(8, 32, 34),
}


def decode(raw: np.ndarray[Any, np.dtype[np.uint8]], kind: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The numbers of rows of blocks: uint8 ``(rows, bytes)`` -> float32 ``(rows, elements)``.

    Scales are widened to float32 before they multiply, so that the result is exact to the last bit.
    """
    rows = raw.shape[0]
    if kind == "F32":
        return raw.view("<f4")
    if kind == "F16":
        return raw.view("<f2").astype(np.float32)
    if kind == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    blocks = raw.reshape(-1, BLOCKS[kind].bytes)
    head = 4 if kind == "Q4_1" else 2  # Q4_1 has a minimum beside the scale
    scales = np.ascontiguousarray(blocks[:, :head]).view("<f2").astype(np.float32)
    codes = blocks[:, head:]
    if kind == "Q8_0":
        return (codes.view(np.int8) * scales).reshape(rows, -1)
    out = np.empty((len(blocks), 32), np.float32)
    low, high = codes & 15, codes >> 4
    if kind == "Q4_0":
        low, high = low.view(np.int8) - np.int8(8), high.view(np.int8) - np.int8(8)
    np.multiply(low, scales[:, :1], out=out[:, :16])
    np.multiply(high, scales[:, :1], out=out[:, 16:])
    if kind == "Q4_1":
        out += scales[:, 1:]
    return out.reshape(rows, -1)

"""Functions that rearrange and repeat the pixels of images ``(b, c, h, w)``. candle: ``candle_nn::ops``."""

from __future__ import annotations

from typing import Any, TypeVar

from ..error import ArgumentValueError, ShapeMismatchError
from ..graph.operations.counts import integer
from ..tensor.arguments import expect_tensor

T = TypeVar("T", bound=Any)


def pixel_shuffle(xs: T, upscale_factor: int) -> T:
    """``(b, c · r², h, w)`` to ``(b, c, h · r, w · r)``: each r² channels become a square of r · r pixels, by rows.

    Shi et al. 2016, https://arxiv.org/abs/1609.05158. Raises ``UnexpectedNumberOfDimsError``, and
    ``ShapeMismatchError`` for channels that r² does not divide.
    """
    expect_tensor("pixel_shuffle", xs)
    r = _factor("pixel_shuffle", "upscale_factor", upscale_factor)
    b, channels, h, w = xs.dims4()
    c, rest = divmod(channels, r * r)
    if rest:
        raise ShapeMismatchError(f"pixel_shuffle: got {channels} channels; takes a multiple of {r * r}")
    parts = xs.reshape((b, c, r, r, h, w)).permute((0, 1, 4, 2, 5, 3))
    result: T = parts.reshape((b, c, h * r, w * r))
    return result


def pixel_unshuffle(xs: T, downscale_factor: int) -> T:
    """``(b, c, h · r, w · r)`` to ``(b, c · r², h, w)``, undoing ``pixel_shuffle``.

    Raises ``UnexpectedNumberOfDimsError``, and ``ShapeMismatchError`` for heights and widths that r does not divide.
    """
    expect_tensor("pixel_unshuffle", xs)
    r = _factor("pixel_unshuffle", "downscale_factor", downscale_factor)
    b, c, height, width = xs.dims4()
    if height % r or width % r:
        raise ShapeMismatchError(f"pixel_unshuffle: got {height} x {width} pixels; takes multiples of {r}")
    h, w = height // r, width // r
    parts = xs.reshape((b, c, h, r, w, r)).permute((0, 1, 3, 5, 2, 4))
    result: T = parts.reshape((b, c * r * r, h, w))
    return result


def _factor(op: str, name: str, value: Any) -> int:
    if integer(op, name, value) < 1:
        raise ArgumentValueError(f"{op}: got {name} {value}; takes 1 or more")
    return int(value)


def replication_pad2d(xs: T, pad: int) -> T:
    """``(b, c, h, w)`` to ``(b, c, h + 2 · pad, w + 2 · pad)``, the pixels at the edges repeated.

    Any ``pad`` from 0, which gives the tensor itself; candle's takes 0 and 1. Raises ``ArgumentValueError`` for a
    negative one, ``UnexpectedNumberOfDimsError``, and ``EmptyTensorError`` where there is no pixel to repeat.
    """
    expect_tensor("replication_pad2d", xs)
    if integer("replication_pad2d", "pad", pad) < 0:
        raise ArgumentValueError(f"replication_pad2d: got pad {pad}; takes 0 or more")
    if pad == 0:
        return xs
    xs.dims4()
    result: T = xs.pad_with_same(3, pad, pad).pad_with_same(2, pad, pad)
    return result

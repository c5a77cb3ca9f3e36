"""Conversions between dtypes with candle's results, which are those of Rust's ``as``."""

from __future__ import annotations

import mlx.core as mx

from .variant import is_half


def cast(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """``x`` in another dtype.

    Float to integer truncates toward zero, saturates at the ends of the range and turns NaN into 0; integers wrap in
    a narrower integer; every other conversion rounds to nearest, ties to even, once.
    """
    if not mx.issubdtype(x.dtype, mx.floating):
        return x.astype(dtype)
    if mx.issubdtype(dtype, mx.floating):
        if x.dtype == mx.float64 and dtype in (mx.float16, mx.bfloat16):
            return _to_odd_float32(x).astype(dtype)
        return x.astype(dtype)
    info = mx.iinfo(dtype)
    # The range's upper end need not be exact in x's dtype: compare with the power of two above it.
    wide = x.astype(mx.float32) if is_half(x) else x
    low, high = mx.array(float(info.min), wide.dtype), mx.array(float(info.max) + 1, wide.dtype)
    inside = mx.where((wide > low) & (wide < high), wide, mx.array(0, wide.dtype)).astype(dtype)
    top = mx.where(wide >= high, mx.array(info.max, dtype), inside)
    return mx.where(wide <= low, mx.array(info.min, dtype), top)


def _to_odd_float32(x: mx.array) -> mx.array:
    """float64 as float32, rounded to odd: rounding that to a half gives what rounding x directly would.

    Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd".
    """
    nearest = x.astype(mx.float32)
    back = nearest.astype(mx.float64)
    bits = nearest.view(mx.int32)
    # The bits without the sign grow with the size: one less is the float next to it toward 0, also from infinity.
    toward_zero = mx.where(mx.abs(back) > mx.abs(x), bits - 1, bits)
    inexact = (back != x) & ~mx.isnan(x)
    return mx.where(inexact, toward_zero | 1, bits).view(mx.float32)

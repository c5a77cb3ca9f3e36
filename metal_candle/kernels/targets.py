"""Ids of classes, one or several a row, of which some may name no class: those of a caller who did not check them.

MLX reads, and writes, what is not the row's for an id outside it. Here such an id gives NaN and has a gradient of 0.
"""

from __future__ import annotations

import mlx.core as mx

_NARROW = (mx.int8, mx.uint8, mx.int16, mx.uint16)


def places(ids: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """Ids to gather by, those that are none of 0..count - 1 replaced by 0, and which are to be trusted."""
    # MLX has no derivative for ids.
    ids = mx.stop_gradient(ids)
    if ids.dtype in _NARROW:
        # A count may be more than they hold.
        ids = ids.astype(mx.int32)
    known = (ids >= 0) & (ids < count)
    return mx.where(known, ids, mx.array(0, ids.dtype)), known


def or_nan(values: mx.array, known: mx.array) -> mx.array:
    """``values`` where ``known``, else NaN."""
    return mx.where(known, values, mx.array(mx.nan, values.dtype))


def or_zero(values: mx.array, known: mx.array) -> mx.array:
    """``values``, a cotangent, where ``known``, else 0."""
    return mx.where(known, values, mx.array(0, values.dtype))

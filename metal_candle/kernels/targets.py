"""Ids of classes, one or several a row, of which some may name no class: those of a caller who did not check them.

MLX reads, and writes, what is not the row's for an id outside it. Here such an id gives NaN and has a gradient of 0.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

# Those of 8 and 16 bits may not hold the count, and become uint32.
_UNSIGNED = {mx.int32: mx.uint32, mx.uint32: mx.uint32, mx.int64: mx.uint64, mx.uint64: mx.uint64}


def places(ids: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """Ids to gather by, all of 0..count - 1, and which are as they were given, the others naming nothing.

    Raises ``ValueError`` for ids that are no integers.
    """
    if not mx.issubdtype(ids.dtype, mx.integer):
        raise ValueError(f"ids of classes: got {ids.dtype}; takes integers")
    # MLX has no derivative for ids.
    ids = mx.stop_gradient(ids)
    # Without a sign those below 0 are large: one comparison to two.
    unsigned = ids.view(_UNSIGNED[ids.dtype]) if ids.dtype in _UNSIGNED else ids.astype(mx.uint32)
    at = mx.minimum(unsigned, count - 1)
    known = at == unsigned
    # MLX adds uint64 to int32 as floats.
    return (at.astype(mx.uint32) if at.dtype == mx.uint64 else at), known


def or_nan(values: mx.array, known: mx.array) -> mx.array:
    """``values`` where ``known``, else NaN."""
    return mx.where(known, values, mx.nan)


def or_zero(values: mx.array, known: mx.array) -> mx.array:
    """``values``, a cotangent say, where ``known``, else 0, which 0 times what is no number would not be."""
    return mx.where(known, values, 0)


def surely(known: mx.array) -> bool:
    """Whether all are true, as far as it can be seen: within a transformation there are no values."""
    try:
        return bool(np.array(known).all())
    except ValueError:
        return False

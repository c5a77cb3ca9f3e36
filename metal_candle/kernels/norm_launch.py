"""How the norms are launched: the threads of a row, what the programs take, when sum and norm are one launch."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import mlx.core as mx

from .custom import MOST_DIMS, MOST_THREADS_OF_A_GRID, SIMD, Launch, Template, ceil_div
from .kernel import launching
from .own import Trial
from .samples import instantiation, is_small, normal

CHUNKS = 4
"""How often a thread takes four neighbours of a row into registers: 16 floats, and as many of what is beside them."""
MOST_THREADS = 512
HELD = 4 * CHUNKS * MOST_THREADS
"""Elements of a row that its threads hold, 8,192; of wider ones the rest is read twice."""
ROWS = 4
"""Rows of up to 512 elements, of a simdgroup each, in a threadgroup."""
WIDEST = 16_384
"""Elements of a row up to which its sum is left to the one threadgroup that norms it."""
DTYPES = (mx.float32, mx.float16, mx.bfloat16)


@lru_cache(maxsize=256)
def how(shape: tuple[int, ...], dtype: mx.Dtype, residual: bool, weight: bool, more: Template = ()) -> Launch:
    """The launch for x of this shape and dtype: normed and, with a residual, total; ``more`` are further flags."""
    width = shape[-1]
    rows = prod(shape[:-1])
    threads = _threads(width)
    together = min(ROWS, rows) if threads == SIMD else 1
    return Launch(
        shapes=(shape, shape if residual else (1,)),
        dtypes=(dtype, dtype),
        grid=(threads * ceil_div(rows, together), together, 1),
        threadgroup=(threads, together, 1),
        template=(("T", dtype), ("RESIDUAL", residual), ("WEIGHT", weight), *more, ("CHUNKS", CHUNKS)),
        unused=() if residual else ("total",),
    )


def _threads(width: int) -> int:
    return min(MOST_THREADS, SIMD * ceil_div(width, 4 * CHUNKS * SIMD))


def unfit(x: mx.array, residual: mx.array | None, **beside: mx.array | None) -> str | None:
    """Why the programs cannot take these arguments; ``beside`` are rows like a weight."""
    reason = unfit_shape(tuple(x.shape), x.dtype)
    if reason is not None:
        return reason
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        return f"a residual {list(residual.shape)} of {residual.dtype} to {list(x.shape)} of {x.dtype}"
    for name, row in beside.items():
        if row is not None and (row.shape != x.shape[-1:] or row.dtype != x.dtype):
            return f"a {name} {list(row.shape)} of {row.dtype} for {list(x.shape)} of {x.dtype}"
    return None


@lru_cache(maxsize=256)
def unfit_shape(shape: tuple[int, ...], dtype: mx.Dtype) -> str | None:
    """Why the programs cannot take x of this shape and dtype."""
    if not shape or 0 in shape:
        return "no rows"
    if dtype not in DTYPES:
        return f"{str(dtype).rpartition('.')[2]} is none of float32, float16 and bfloat16"
    if len(shape) > MOST_DIMS:
        return f"{len(shape)} dims"
    rows, threads = prod(shape[:-1]), _threads(shape[-1])
    if threads * ceil_div(rows, ROWS if threads == SIMD else 1) > MOST_THREADS_OF_A_GRID:
        return f"{rows:,} rows are more than one launch takes"
    return None


def sum_wins(shape: tuple[int, ...]) -> tuple[bool, str]:
    """Whether a sum and its norm are one launch, and why: no row of results.csv yet says it.

    Apart they read both terms and write the sum, read it again and write the norm: 5 passes. ``mx.compile`` does not
    join them either, as a norm is no elementwise operation.
    """
    if shape[-1] > WIDEST:
        return False, f"unmeasured: rows of more than {WIDEST:,} elements are added by the whole GPU"
    return True, "unmeasured: 1 launch and 4 passes over the rows to 2 and 5"


def why_apart(shape: tuple[int, ...], dtype: mx.Dtype) -> str | None:
    """Why a sum of this shape and dtype and its norm are computed one after the other; ``None`` where by one launch.

    For the device that MLX computes on in this context.
    """
    on, always = launching()
    if on is None:
        return "no kernel of ours is launched here; apart, the sum and the norm take as long"
    reason = unfit_shape(shape, dtype)
    if reason is not None or always:
        return reason
    wins, why = sum_wins(shape)
    return None if wins else why


def trial(x: mx.array, residual: bool, beside: tuple[bool, ...], more: Template = ()) -> Trial:
    """A launch like that of x with or without a residual, and with those of the rows ``beside`` that are true."""
    shape, dtype = tuple(x.shape), x.dtype
    width, like = shape[-1], _like(shape)
    given = how(shape, dtype, residual, beside[0], more)

    def arguments() -> tuple[Any, ...]:
        tensors = [normal(like, dtype, key=key) + 1 for key in range(1 + residual)]
        rows = [normal(like[1:], dtype, key=2 + i) + 1 if each else None for i, each in enumerate(beside)]
        # An eps that would be missed.
        return (*tensors, *rows, 0.5)

    key = instantiation(given, (shape, dtype), ((width,), dtype))
    return Trial((*key, residual, beside, width > HELD, width % 4 == 0), arguments)


def _like(shape: tuple[int, ...]) -> tuple[int, int]:
    """Few rows, for which as many threads are launched, that go the same way through the programs."""
    rows, width = prod(shape[:-1]), shape[-1]
    odd = 3 if width % 4 else 4
    if width > 4 * CHUNKS * SIMD:
        return 2, (2 * HELD if width > HELD else (_threads(width) - SIMD) * 4 * CHUNKS) + odd
    if rows >= ROWS:
        # As many as leave the last threadgroup with places for more.
        rows = 7 if is_small(rows, width) else 9
    return rows, width if is_small(width) else 3 * 4 * SIMD + odd

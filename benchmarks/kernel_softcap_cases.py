"""Cases of ``kernels.py``: soft-capping, of an attention's scores and of a vocabulary's logits."""

from __future__ import annotations

from collections.abc import Iterator

from metal_candle.kernels.softcap import softcap

import kernel_bytes as least
import mlx.core as mx
from kernel_case import Arrays, Case
from kernel_grid import GRADIENT, Grid, normal

CAP = 30.0


def plain(x: mx.array) -> mx.array:
    """As mlx-lm's Gemma 2 spells it: three launches."""
    return mx.tanh(x / CAP) * CAP


def softcaps(grid: Grid) -> Iterator[Case]:
    """Rows of a vocabulary's logits."""
    rows = grid.sizes({256: 0, 1: 1, 4096: 2}, {32: 0, 1: 1})
    widths = grid.sizes({4096: 0, 49152: 1}, {4096: 0})
    for dtype, (count, width), level in grid.over(rows, widths):

        def make(dtype: mx.Dtype = dtype, count: int = count, width: int = width) -> Arrays:
            return (normal(dtype, count, width, scale=CAP),)

        for gradient in (False, True) if count > 1 else (False,):
            size = (count, width, dtype.size)
            yield Case(
                group="softcap",
                axes={"rows": count, "width": width},
                dtype=dtype,
                kernel=softcap,
                make=make,
                arguments=lambda x: (x, CAP),
                rivals={"plain": plain},
                # As of a softmax: read and written once; the gradient reads the cotangent too.
                floor=least.softmax(*size) + (least.row_gradient(*size) if gradient else 0),
                links={0: 0},
                wrt=(0,) if gradient else (),
                level=level + 1 + (GRADIENT if gradient else 0),
            )

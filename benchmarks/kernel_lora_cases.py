"""Cases of ``kernels.py``: LoRA for one adapter, and for rows of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from metal_candle.kernels import fused_lora
from metal_candle.kernels.grouped_lora import Adapters
from metal_candle.kernels.grouped_lora import grouped_lora as grouped

import kernel_bytes as least
import kernel_rivals as mlx
import mlx.core as mx
from kernel_case import Arrays, Case
from kernel_grid import GRADIENT, Grid, normal


def lora(grid: Grid) -> Iterator[Case]:
    """LoRA's update and the layer it is added to, from one token, as a model decodes, to 64."""
    tokens = grid.sizes({1: 0, 8: 0, 64: 1, 4: 1, 16: 1, 2: 2, 32: 2}, {1: 0, 8: 1, 64: 1})
    widths = grid.sizes({4096: 0, 576: 1, 2048: 1, 1024: 2}, {576: 0, 2048: 1})
    ranks = grid.sizes({16: 0, 8: 1, 64: 1, 4: 2, 32: 2}, {8: 0, 64: 1})
    for dtype, (count, width, rank), level in grid.over(tokens, widths, ranks):
        yield from _lora(dtype, count, width, rank, level, gradient=False)
    batch = grid.sizes({128: 0, 1024: 1, 4096: 1}, {128: 0})
    for dtype, (count, width, rank), level in grid.over(batch, grid.sizes({4096: 0, 576: 1}, {576: 0}), {16: 0}):
        yield from _lora(dtype, count, width, rank, level + GRADIENT, gradient=True)


def _lora(dtype: mx.Dtype, count: int, width: int, rank: int, level: int, gradient: bool) -> Iterator[Case]:
    axes = {"tokens": count, "width": width, "rank": rank}

    def make(added: bool) -> Arrays:
        # So that the results of a long chain of calls neither vanish nor grow.
        out = rank**-0.5 / mlx.SCALE * (0.1 if added else 1.0)
        factors = normal(dtype, width, rank, scale=width**-0.5), normal(dtype, rank, width, scale=out)
        return (*([normal(dtype, count, width)] if added else []), normal(dtype, count, width), *factors)

    for kernel, added, x, floor, rivals in (
        (fused_lora.lora, False, 0, least.lora, {"plain": mlx.lora_plain, "at rank": mlx.lora_at_rank}),
        (fused_lora.add_lora, True, 1, least.add_lora, {"plain": mlx.add_lora_plain, "addmm": mlx.add_lora_addmm}),
    ):
        bytes_ = floor(count, width, width, rank, dtype.size)
        yield Case(
            group=kernel.name,
            axes=axes,
            dtype=dtype,
            kernel=kernel,
            make=partial(make, added),
            arguments=lambda *inputs: (*inputs, mlx.SCALE),
            rivals=rivals,
            floor=bytes_ + (least.lora_gradient(count, width, width, rank, dtype.size) if gradient else 0),
            links={x: 0},
            wrt=(x, x + 1, x + 2) if gradient else (),
            products=True,
            level=level,
        )


def grouped_lora(grid: Grid) -> Iterator[Case]:
    """Rows of several adapters, every other of half the rank."""
    rows = grid.sizes({1: 1, 8: 0, 32: 1, 4: 1, 16: 2, 2: 2}, {8: 0, 1: 1})
    widths = grid.sizes({4096: 0, 576: 1, 2048: 1}, {576: 0})
    for dtype, (count, adapters, width, rank), level in grid.over(rows, {4: 0, 16: 2}, widths, {16: 0, 64: 2}):
        ranks = [rank if i % 2 == 0 else rank // 2 for i in range(adapters)]
        owners = sorted(i % adapters for i in range(count))

        def make(
            dtype: mx.Dtype = dtype,
            count: int = count,
            width: int = width,
            ranks: Sequence[int] = ranks,
            owners: Sequence[int] = owners,
        ) -> Arrays:
            a = [normal(dtype, each, width, scale=width**-0.5) for each in ranks]
            b = [normal(dtype, each, width, scale=0.1 * each**-0.5 / mlx.SCALE) for each in ranks]
            wide_a, wide_b = (
                mx.stack([mx.pad(each, [(0, max(ranks) - each.shape[0]), (0, 0)]) for each in factors])
                for factors in (a, b)
            )
            inputs = normal(dtype, count, width), normal(dtype, count, width), mx.array(list(owners), mx.int32)
            stacked = mx.contiguous(mx.swapaxes(wide_a, 1, 2)), wide_b
            return (*inputs, mx.concatenate(a), mx.concatenate(b), *stacked)

        known = Adapters(tuple(ranks), (mlx.SCALE,) * adapters)
        used = [ranks[i] for i in dict.fromkeys(owners)]
        yield Case(
            group="grouped_lora",
            axes={"rows": count, "adapters": adapters, "width": width, "rank": rank},
            dtype=dtype,
            kernel=grouped,
            make=make,
            arguments=lambda base, x, ids, a, b, *stacked, known=known: (base, x, ids, a, b, known),
            rivals=mlx.grouped_lora(ranks, owners),
            floor=least.grouped_lora(count, width, width, used, dtype.size),
            links={1: 0},
            products=True,
            level=level,
        )

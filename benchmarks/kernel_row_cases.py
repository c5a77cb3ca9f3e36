"""Cases of ``kernels.py`` that work on rows: softmax with what goes before it, norms with the residual."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from metal_candle.kernels import softmax
from metal_candle.kernels.add_layer_norm import add_layer_norm
from metal_candle.kernels.add_rms_norm import add_rms_norm
from metal_candle.kernels.layer_norm import layer_norm
from metal_candle.kernels.rms_norm import rms_norm

import kernel_bytes as least
import kernel_rivals as mlx
import mlx.core as mx
from kernel_case import Arrays, Case
from kernel_grid import GRADIENT, Axis, Grid, normal


def softmaxes(grid: Grid) -> Iterator[Case]:
    """Softmax alone, with scale and additive or causal mask, and log-softmax."""
    for dtype, (rows, width), level in grid.over(*_row_axes(grid)):
        for gradient in _with_gradient(grid, rows, width):
            yield from _softmaxes(dtype, rows, width, level, gradient)


def _row_axes(grid: Grid) -> tuple[Axis, Axis]:
    return (
        grid.sizes({4096: 0, 1: 1, 16: 1, 256: 1, 1024: 1, 4: 2, 64: 2}, {16: 0, 1: 1, 256: 1}),
        grid.sizes({4096: 0, 64: 1, 576: 1, 1024: 1, 49152: 1, 256: 2, 16384: 2}, {576: 0, 64: 1, 4096: 1, 49152: 2}),
    )


def _with_gradient(grid: Grid, rows: int, width: int) -> tuple[bool, ...]:
    """Whether without and also with it: as batches in training are."""
    if not grid.gpu and rows * width > 2**20:
        return ()
    return (False, True) if rows >= 256 and width in (576, 4096) else (False,)


def _softmaxes(dtype: mx.Dtype, rows: int, width: int, level: int, gradient: bool) -> Iterator[Case]:
    heads, scale, item = min(8, rows), 0.125, dtype.size
    queries = rows // heads
    more = least.row_gradient(rows, width, item) if gradient else 0

    def case(group: str, later: int, floor: int, **fields: Any) -> Case:
        return Case(
            group=group,
            axes={"rows": rows, "width": width},
            dtype=dtype,
            floor=floor + more,
            links={0: 0},
            wrt=(0,) if gradient else (),
            level=level + later + (GRADIENT if gradient else 0),
            **fields,
        )

    def alone() -> Arrays:
        return (normal(dtype, heads, queries, width, scale=4),)

    def masked() -> Arrays:
        hidden = mx.random.uniform(0, 1, (queries, width)) < 0.2
        return (*alone(), mx.where(hidden, -1e4, 0.0).astype(dtype))

    def causal() -> Arrays:
        return (*alone(), softmax.causal_mask(queries, width, dtype))

    rivals = {"scale, add, softmax": mlx.masked_softmax(scale)}
    yield case(
        "masked_softmax",
        0,
        least.masked_softmax(rows, width, queries, item),
        kernel=softmax.softmax,
        make=masked,
        arguments=lambda x, mask: (x, scale, mask),
        rivals=rivals,
    )
    # More queries than keys would leave some without a key.
    if queries <= width:
        yield case(
            "causal_softmax",
            0,
            least.causal_softmax(heads, queries, width, item),
            kernel=softmax.softmax,
            make=causal,
            arguments=lambda x, mask: (x, scale, "causal"),
            rivals=rivals,
        )
    yield case(
        "softmax",
        1,
        least.softmax(rows, width, item),
        kernel=softmax.softmax,
        make=alone,
        arguments=lambda x: (x,),
        rivals={"mx.softmax": mlx.softmax},
    )
    yield case(
        "log_softmax",
        1,
        least.softmax(rows, width, item),
        kernel=softmax.log_softmax,
        make=alone,
        arguments=lambda x: (x,),
        rivals={"x - logsumexp": mlx.log_softmax},
    )


def norms(grid: Grid) -> Iterator[Case]:
    """RMS norm and layer norm, alone and of the sum with a residual, where both results are kept."""
    for dtype, (rows, width), level in grid.over(*_row_axes(grid)):
        for gradient in _with_gradient(grid, rows, width):
            yield from _norms(dtype, rows, width, level, gradient)


def _norms(dtype: mx.Dtype, rows: int, width: int, level: int, gradient: bool) -> Iterator[Case]:
    sorts = (
        (rms_norm, False, 1, {"mx.fast": mlx.rms_norm, "plain": mlx.rms_norm_plain}, 1),
        (add_rms_norm, True, 1, {"mx.fast": mlx.rms_norm, "plain": mlx.rms_norm_plain}, 0),
        (layer_norm, False, 2, {"mx.fast": mlx.layer_norm, "plain": mlx.layer_norm_plain}, 1),
        (add_layer_norm, True, 2, {"mx.fast": mlx.layer_norm, "plain": mlx.layer_norm_plain}, 1),
    )

    def make(arrays: int, vectors: int) -> Arrays:
        wide = [normal(dtype, rows, width) for _ in range(arrays)]
        return (*wide, *(normal(dtype, width) for _ in range(vectors)))

    for kernel, added, vectors, rivals, later in sorts:
        arrays = 2 if added else 1
        floor = (least.add_norm if added else least.norm)(rows, width, vectors, dtype.size)
        more = (least.add_norm_gradient if added else least.row_gradient)(rows, width, dtype.size)
        yield Case(
            group=kernel.name,
            axes={"rows": rows, "width": width},
            dtype=dtype,
            kernel=kernel,
            make=partial(make, arrays, vectors),
            arguments=lambda *inputs: (*inputs, mlx.EPS),
            rivals={name: mlx.residual(norm) if added else norm for name, norm in rivals.items()},
            floor=floor + (more if gradient else 0),
            # As in a transformer: the norm goes into the next block, the sum past it.
            links={0: 1, 1: 0} if added else {0: 0},
            wrt=tuple(range(arrays)) if gradient else (),
            level=level + later + (GRADIENT if gradient else 0),
        )

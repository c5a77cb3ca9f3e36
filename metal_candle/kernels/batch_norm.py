"""Batch normalisation while training: the batch's own statistics, and the gradients through them.

MLX computes an array at a time. On the CPU a large batch is gone through in blocks of examples whose temporaries stay
in the cache: three times for the mean, the variance and the result, twice for the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .accurate_sum import total
from .kernel import on_cpu
from .rms_norm import row_sum
from .slices import in_blocks
from .variant import Gradients

# Elements from which the CPU goes through blocks. Measured on two x86-64 cores, f32: of (32, 64, 28, 28) and
# (8, 64, 64, 64) whole arrays take 1.4 to 2.2 times as long forward, 1.1 to 1.3 with all gradients; of (512, 1024) and
# (64, 512, 4, 4) 0.6. The formula in MLX's operations, differentiated by MLX, takes 1.6 to 7 times as long.
LARGE = 2**20


class Normed(NamedTuple):
    """The result, and the statistics of each channel, ``(c,)``, of halves in float32; the variance is biased."""

    result: mx.array
    mean: mx.array
    variance: mx.array


def forward(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float, remove_mean: bool) -> Normed:
    """``(x - mean) / sqrt(variance + eps) · weight + bias`` for each channel, dim 1 of x.

    Without ``remove_mean`` the mean is taken to be 0. Halves are computed in float32. Ioffe and Szegedy 2015,
    https://arxiv.org/abs/1502.03167.
    """
    part = 1 / values_per_channel(x.shape)
    if remove_mean:
        mean = _added(lambda block: (_channel_sum(block),), x)[0] * part
    else:
        mean = mx.zeros((x.shape[1],), mx.float64 if x.dtype == mx.float64 else mx.float32)
    centred = _centring(mean, remove_mean)
    variance = _added(lambda block: (_channel_sum(mx.square(centred(block))),), x)[0] * part
    scale = mx.rsqrt(variance + eps)
    scale = _column(scale if weight is None else scale * weight)
    shift = None if bias is None else _column(bias.astype(scale.dtype))

    def result(block: mx.array) -> mx.array:
        scaled = centred(block) * scale
        return (scaled if shift is None else scaled + shift).astype(x.dtype)

    return Normed(mx.concatenate(_blocks(result, x)).reshape(x.shape), mean, variance)


def vjp(
    cotangent: mx.array,
    x: mx.array,
    weight: mx.array | None,
    mean: mx.array,
    variance: mx.array,
    needs: Sequence[bool],
    eps: float,
    remove_mean: bool,
) -> Gradients:
    """The gradients of x, the weight and the bias by the result's; the statistics are those that ``forward`` gave."""
    centred = _centring(mean, remove_mean)
    inverse = mx.rsqrt(variance + eps)

    def sums(block: mx.array, upstream: mx.array) -> tuple[mx.array, mx.array]:
        return _channel_sum(upstream), _channel_sum(upstream * centred(block))

    upward, along = _added(sums, x, cotangent)
    along = along * inverse
    of_x = None
    if needs[0]:
        part = 1 / values_per_channel(x.shape)
        scale = inverse if weight is None else inverse * weight
        # What changes the variance, or the mean, is normalised away again.
        slope, shift = _column(scale * inverse * along * -part), _column(scale * upward * -part)
        scale = _column(scale)

        def of_block(block: mx.array, upstream: mx.array) -> mx.array:
            found = upstream * scale + centred(block) * slope
            return (found + shift if remove_mean else found).astype(x.dtype)

        of_x = mx.concatenate(_blocks(of_block, x, cotangent)).reshape(x.shape)
    return of_x, along.astype(x.dtype) if needs[1] else None, upward.astype(x.dtype) if needs[2] else None


def values_per_channel(shape: Sequence[int]) -> int:
    """How many elements of ``(b, c, …)`` a channel has."""
    return shape[0] * math.prod(shape[2:])


def _centring(mean: mx.array, remove_mean: bool) -> Callable[[mx.array], mx.array]:
    column = _column(mean)
    return lambda block: block - column if remove_mean else block


def _column(row: mx.array) -> mx.array:
    return mx.expand_dims(row, 1)


def _wide(x: mx.array) -> mx.array:
    return x if x.dtype == mx.float64 else x.astype(mx.float32)


def _channel_sum(block: mx.array) -> mx.array:
    """The sum of each channel of ``(b, c, n)``."""
    if not on_cpu() or block.shape[2] == 1:
        return total(block, (0, 2))
    # Over the examples first: these are sums of whole rows, 0.2 ns an element to 0.3 the other way round.
    return row_sum(total(block, (0,)))[:, 0]


def _added(function: Callable[..., tuple[mx.array, ...]], x: mx.array, *beside: mx.array) -> list[mx.array]:
    """The sums over blocks of what ``function`` gives."""
    columns = zip(*_blocks(function, x, *beside))
    return [mx.sum(mx.stack(list(column)), axis=0) if len(column) > 1 else column[0] for column in columns]


def _blocks(function: Callable[..., Any], x: mx.array, *beside: mx.array) -> list[Any]:
    """What ``function`` gives for blocks ``(b, c, n)`` of the examples, in float32 at least."""
    count, channels = x.shape[:2]
    rest = math.prod(x.shape[2:])

    def of_rows(*rows: mx.array) -> Any:
        return function(*[_wide(each).reshape(each.shape[0], channels, rest) for each in rows])

    flat = [each.reshape(count, channels * rest) for each in (x, *beside)]
    return in_blocks(of_rows, *flat) if x.size >= LARGE and on_cpu() else [of_rows(*flat)]

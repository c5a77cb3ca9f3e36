"""A changed weight quantised as the one it came from, on whichever grid is nearer."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..dtype import DType
from ..graph.evaluate import on_device
from ..kernels.quantized_linear import AFFINE
from ..nn.quantized_linear import QuantizedWeight
from ..tensor.eager import Tensor

# Codes that are packed at a time: each bit takes a byte on the way.
_CHUNK = 1 << 22


def requantized(base: QuantizedWeight, weight: Tensor, dtype: DType) -> QuantizedWeight:
    """``weight`` (out, in), F32, in the bits and groups of ``base``; scales and biases in ``dtype``.

    Each group takes the nearer of two grids: the one MLX chooses for the new numbers, and the base's own. New scales
    move every number of a group, by more than a small change is worth; on the old ones no number ends up farther from
    the sum than the base itself was. Modes without biases have MLX's choice alone.
    """
    fresh = base.requantize(weight).to_dtype(dtype)
    if base.mode != AFFINE:
        return fresh
    kept = _on_grid(base.to_dtype(dtype), weight)
    with on_device(base.device):
        nearer = _group_errors(kept, weight) <= _group_errors(fresh, weight)
        codes, scales, biases = (
            mx.where(nearer[..., None], _by_group(old, nearer), _by_group(new, nearer)).reshape(old.shape)
            for old, new in zip((part.mlx() for part in kept.parts()), (part.mlx() for part in fresh.parts()))
        )
        mx.eval(codes, scales, biases)
    first, second, third = (Tensor.from_mlx(part, base.device) for part in (codes, scales, biases))
    return QuantizedWeight(first, second, third, *base.packing())


def _on_grid(grid: QuantizedWeight, weight: Tensor) -> QuantizedWeight:
    """Each number as the nearest code of the scales and biases that are there."""
    assert grid.biases is not None
    with on_device(grid.device):
        scales, biases = (part.mlx().astype(mx.float32)[..., None] for part in (grid.scales, grid.biases))
        groups = weight.mlx().reshape(*grid.scales.shape, grid.group_size)
        steps = mx.where(scales == 0, 0, (groups - biases) / mx.where(scales == 0, 1, scales))
        codes = mx.clip(mx.round(steps), 0, 2**grid.bits - 1).astype(mx.uint8).reshape(weight.shape)
        packed = mx.array(_packed(np.array(codes), grid.bits))
    codes_tensor = Tensor.from_mlx(packed, grid.device)
    return QuantizedWeight(codes_tensor, grid.scales, grid.biases, *grid.packing())


def _packed(
    codes: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], bits: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint32]]:
    """Codes as MLX packs them: each row one little-endian stream of bits."""
    rows, width = codes.shape
    step = max(1, _CHUNK // width)
    parts = []
    for start in range(0, rows, step):
        stream = np.unpackbits(codes[start : start + step, :, None], axis=-1, count=bits, bitorder="little")
        parts.append(np.packbits(stream.reshape(len(stream), -1), axis=-1, bitorder="little").view("<u4"))
    return np.concatenate(parts)


def _group_errors(quantized: QuantizedWeight, weight: Tensor) -> mx.array:
    """The squared distance of each group, ``(out, in / group_size)``."""
    difference = quantized.dequantize().mlx() - weight.mlx()
    return difference.reshape(*quantized.scales.shape, quantized.group_size).square().sum(-1)


def _by_group(part: mx.array, groups: mx.array) -> mx.array:
    """Codes, scales or biases as ``(out, groups, what belongs to one)``."""
    return part.reshape(*groups.shape, -1)

"""Rotary position embeddings: the frequencies of a configuration, and tables of their cosines and sines."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ..device import Device
from ..dtype import DType
from ..tensor.eager import Tensor
from .config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> np.ndarray[Any, Any]:
    """The ``head_dim / 2`` angles per position, in radians, float64.

    Su et al. 2021, https://arxiv.org/abs/2104.09864; scaled linearly or as Llama 3 where the configuration
    says so.
    """
    size = config.head_dim()
    frequencies = config.rope_theta ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling["rope_type"] == "linear":
        return np.asarray(frequencies / scaling["factor"])
    return np.asarray(frequencies / llama3_divisors(config.rope_theta, size, scaling))


def llama3_divisors(theta: float, head_dim: int, scaling: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What Llama 3 divides each of the ``head_dim / 2`` RoPE frequencies by, float64.

    Wavelengths below ``original / high_freq_factor`` stay, those above ``original / low_freq_factor`` are
    stretched by ``factor``, between them the frequency is interpolated. Source: Llama 3.1's reference
    implementation (``apply_scaling``).
    """
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = scaling["original_max_position_embeddings"] / wavelength
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / factor + smooth))


class RotaryEmbedding:
    """Cosines and sines ``(positions, head_dim / 2)``, made as far as they are needed."""

    def __init__(self, config: ModelConfig, dtype: DType, device: Device) -> None:
        self._frequencies = inverse_frequencies(config)
        self.dtype, self._device = dtype, device
        self._made: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] = (np.zeros((0, 0)), np.zeros((0, 0)))
        self._last: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None

    def rows(self, start: int, length: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Cosine and sine for positions ``start`` to ``start + length - 1``, ``(length, head_dim / 2)``, float32."""
        # One attribute, read and written once: another thread may make longer tables meanwhile.
        made = self._made
        if start + length > len(made[0]):
            count = max(start + length, 2 * len(made[0]), 256)
            angles = np.arange(count, dtype=np.float64)[:, None] * self._frequencies
            self._made = made = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        rows = slice(start, start + length)
        return made[0][rows], made[1][rows]

    def tables(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """``rows`` as tensors; those of the last call are kept, as every layer asks for the same."""
        last = self._last  # as in rows
        if last is None or last[0] != (start, length):
            arrays = [mx.array(rows).astype(self.dtype.mlx_) for rows in self.rows(start, length)]
            mx.eval(arrays)  # or another thread, which has other streams, could not use what is kept
            cos, sin = (Tensor.from_mlx(array, self._device) for array in arrays)
            self._last = last = ((start, length), (cos, sin))
        return last[1]

"""Rotary position embeddings: the frequencies of a configuration, and tables of their cosines and sines."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ..device import Device
from ..dtype import DType
from ..tensor.eager import Tensor
from .config import ModelConfig
from .weights.gguf import llama3_divisors


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


class RotaryEmbedding:
    """Cosines and sines ``(positions, head_dim / 2)``, made as far as they are needed."""

    def __init__(self, config: ModelConfig, dtype: DType, device: Device) -> None:
        self._frequencies = inverse_frequencies(config)
        self.dtype, self._device = dtype, device
        self._cos = self._sin = np.zeros((0, 0), np.float32)
        self._length = 0
        self._last: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None

    def _grow(self, length: int) -> None:
        self._length = max(length, 2 * self._length, 256)
        angles = np.arange(self._length, dtype=np.float64)[:, None] * self._frequencies
        self._cos, self._sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def rows(self, start: int, length: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Cosine and sine for positions ``start`` to ``start + length - 1``, ``(length, head_dim / 2)``, float32."""
        if start + length > self._length:
            self._grow(start + length)
        rows = slice(start, start + length)
        return self._cos[rows], self._sin[rows]

    def tables(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """``rows`` as tensors; those of the last call are kept, as every layer asks for the same."""
        if self._last is None or self._last[0] != (start, length):
            arrays = [mx.array(rows).astype(self.dtype.mlx_) for rows in self.rows(start, length)]
            mx.eval(arrays)  # or another thread, which has other streams, could not use what is kept
            cos, sin = (Tensor.from_mlx(array, self._device) for array in arrays)
            self._last = ((start, length), (cos, sin))
        return self._last[1]

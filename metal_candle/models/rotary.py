"""Rotary position embeddings: the frequencies of a configuration, and tables of their cosines and sines."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ..device import Device
from ..dtype import DType
from ..nn import ops
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
        self._dtype, self._device = dtype, device
        self._cos = self._sin = np.zeros((0, 0))
        self._length = 0
        # Every layer of a forward pass asks for the same rows.
        self._last: tuple[int, int, tuple[Tensor, Tensor]] | None = None

    def _grow(self, length: int) -> None:
        self._length = max(length, 2 * self._length, 256)
        angles = np.arange(self._length, dtype=np.float64)[:, None] * self._frequencies
        self._cos, self._sin = np.cos(angles), np.sin(angles)

    def tables(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine for positions ``start`` to ``start + length - 1``, ``(length, head_dim / 2)``."""
        if self._last is not None and self._last[:2] == (start, length):
            return self._last[2]
        if start + length > self._length:
            self._grow(start + length)
        rows = slice(start, start + length)
        dtype = self._dtype.mlx_
        cos, sin = (
            mx.array(table[rows].astype(np.float32)).astype(dtype) for table in (self._cos, self._sin)
        )
        tables = Tensor.from_mlx(cos, self._device), Tensor.from_mlx(sin, self._device)
        self._last = start, length, tables
        return tables

    def apply(self, x: Any, start: int = 0) -> Any:
        """``(b, h, t, head_dim)`` rotated for positions ``start`` on."""
        cos, sin = self.tables(start, x.dim(2))
        return ops.rope(x, cos, sin)

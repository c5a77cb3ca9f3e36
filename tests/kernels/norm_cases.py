"""The four kernels that norm, and operands for them."""

from __future__ import annotations

from typing import NamedTuple

from metal_candle.kernels.add_layer_norm import add_layer_norm
from metal_candle.kernels.add_rms_norm import add_rms_norm
from metal_candle.kernels.kernel import Kernel
from metal_candle.kernels.layer_norm import layer_norm
from metal_candle.kernels.rms_norm import rms_norm

import mlx.core as mx
from launched import normal

EPS = 1e-5


class Norm(NamedTuple):
    """A kernel, how many tensors like x it takes and how many rows beside them."""

    kernel: Kernel
    tensors: int
    rows: int

    def operands(self, shape: tuple[int, ...], dtype: mx.Dtype, given: int | None = None) -> list[mx.array | None]:
        """Normal numbers around 0.5, and ``given`` rows (all by default) around 1."""
        given = self.rows if given is None else given
        tensors = [normal(*shape, dtype=dtype, key=i) + 0.5 for i in range(self.tensors)]
        rows = [normal(shape[-1], dtype=dtype, key=10 + i) / 4 + 1 for i in range(given)]
        return [array.astype(dtype) for array in (*tensors, *rows)] + [None] * (self.rows - given)


NORMS = {
    "rms": Norm(rms_norm, 1, 1),
    "add_rms": Norm(add_rms_norm, 2, 1),
    "layer": Norm(layer_norm, 1, 2),
    "add_layer": Norm(add_layer_norm, 2, 2),
}

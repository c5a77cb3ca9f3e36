"""The record of the rotary embedding that turns neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels.rope import rope
from ..operation import Gradients, Meta, Operation, Sample
from .fused import expect_tables


class RopeInterleaved(Operation):
    """Rotary embedding of ``(b, h, t, d)``, each even element of d paired with the one after it.

    cos and sin ``(t, d/2)``, or ``(b, t, d/2)``. Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """

    arity = 3
    candle = "candle_nn::rotary_emb::rope_i(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor>"
    samples = (
        Sample(((2, 3, 5, 8), (5, 4), (5, 4))),
        Sample(((2, 3, 5, 8), (2, 5, 4), (2, 5, 4))),
        Sample(((1, 2, 0, 4), (0, 2), (0, 2))),
    )
    flops_per_element = 3

    def infer(self, x: Meta, cos: Meta, sin: Meta) -> Meta:
        expect_tables("rope_interleaved", x, cos, sin)
        return x

    def lower(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        return rope.forward(x, cos, sin, True)[0]

    @staticmethod
    def numpy(x: Any, cos: Any, sin: Any) -> Any:
        cos, sin = (table[:, None] if table.ndim == 3 else table for table in (cos, sin))
        a, b = x[..., ::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return rope.vjp(cotangent, inputs, output, needs, True)

"""The record of a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..operation import Gradients, Meta, Operation, Sample


class Copy(Operation):
    """The same values, row-major, in storage of their own; gradients pass."""

    candle = "Tensor::copy(&self) -> Result<Tensor>"
    methods = ("copy", "force_contiguous")
    samples = (Sample(((),)), Sample(((0, 3),)), Sample(((5, 123),)))
    numpy = np.array
    work = "move"

    def infer(self, x: Meta) -> Meta:
        return x

    def lower(self, x: mx.array) -> mx.array:
        return mx.contiguous(mx.array(x))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent,)

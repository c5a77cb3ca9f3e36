"""Records that combine each element with those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels.accurate_sum import cumulative
from ...shape import DimLike
from ..operation import Gradients, Meta, Operation, Sample
from .elementwise import in_float32
from .reduce import expect_float, one_dim


class Cumsum(Operation):
    """Sum of each element and those before it along a dim; halves are accumulated in float32.

    An infinity or NaN reaches the elements behind it only (in candle, which multiplies with a triangle, the whole
    row). Integers raise ``UnsupportedDTypeForOpError``, as in candle.
    """

    candle = "Tensor::cumsum<D: Dim>(&self, dim: D) -> Result<Tensor>"
    methods = ("cumsum",)
    samples = (
        Sample(((7,),), (0,)),
        Sample(((0,),), (0,)),
        Sample(((0, 3),), (1,)),
        Sample(((5, 123),), (1,)),
        Sample(((2, 3, 4),), (1,)),
    )
    work = "reduction"
    dim: int

    @classmethod
    def bind(cls, x: Meta, dim: DimLike) -> Operation:
        return cls(one_dim(dim, x.shape, "cumsum"))

    def infer(self, x: Meta) -> Meta:
        expect_float("cumsum", x)
        return x

    def lower(self, x: mx.array) -> mx.array:
        return in_float32(lambda wide: cumulative(wide, self.dim), x)

    @staticmethod
    def numpy(x: Any, dim: int) -> Any:
        return np.cumsum(x, axis=dim)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (in_float32(lambda wide: cumulative(wide, self.dim, reverse=True), cotangent),)

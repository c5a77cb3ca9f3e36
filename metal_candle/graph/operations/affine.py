"""Records of one tensor and numbers that multiply it or are added to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ...error import UnsupportedDTypeForOpError
from ..operation import Gradients, Meta, Metas, Operation, Sample
from ..work import elements
from .elementwise import ANY_SHAPE, scalar


def _number(value: float, dtype: mx.Dtype) -> float | mx.array:
    """A number beside an array of ``dtype``: MLX itself gives one that dtype, but for integers and float64."""
    return value if dtype in (mx.float32, mx.float16, mx.bfloat16) else scalar(value, dtype)


class Affine(Operation):
    """x * mul + add, both numbers cast to the tensor's dtype first, as candle does.

    Into an integer dtype they truncate and saturate: ``affine(0.5, 0.0)`` of integers is all zeros, and they wrap
    around where the result leaves the range. A ``mul`` of 0 ends the gradient: a variable behind it has no entry.
    """

    candle = "Tensor::affine(&self, mul: f64, add: f64) -> Result<Tensor>"
    methods = ("affine",)
    samples = tuple(Sample(sample.shapes, (1.5, -0.25)) for sample in ANY_SHAPE)
    mul: float
    add: float

    @classmethod
    def bind(cls, x: Meta, mul: float, add: float) -> Operation:
        return cls(float(mul), float(add))

    def infer(self, x: Meta) -> Meta:
        return x

    def passes_gradient(self) -> bool:
        return self.mul != 0

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        return ((self.mul != 1) + (self.add != 0)) * elements(output)

    def lower(self, x: mx.array) -> mx.array:
        scaled = x if self.mul == 1 else x * _number(self.mul, x.dtype)
        return scaled if self.add == 0 else scaled + _number(self.add, x.dtype)

    @staticmethod
    def numpy(x: Any, mul: float, add: float) -> Any:
        return x * mul + add

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * scalar(self.mul, cotangent.dtype),)


class MulScalar(Operation):
    """x * value, the number cast to the tensor's dtype first."""

    candle = "metal_candle::LazyTensor::mul_scalar(&self, value: f32) -> Result<LazyTensor>"
    methods = ("mul_scalar",)
    samples = tuple(Sample(sample.shapes, (0.5,)) for sample in ANY_SHAPE)
    value: float

    @classmethod
    def bind(cls, x: Meta, value: float) -> Operation:
        return cls(float(value))

    def infer(self, x: Meta) -> Meta:
        return x

    def passes_gradient(self) -> bool:
        return self.value != 0

    def lower(self, x: mx.array) -> mx.array:
        return x * _number(self.value, x.dtype)

    @staticmethod
    def numpy(x: Any, value: float) -> Any:
        return x * value

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * scalar(self.value, cotangent.dtype),)


class DivScalar(Operation):
    """x / value, the number cast to the tensor's dtype first; 1 / 0 is infinite, 0 / 0 NaN."""

    samples = tuple(Sample(sample.shapes, (3.0,)) for sample in ANY_SHAPE)
    value: float

    @classmethod
    def bind(cls, x: Meta, value: float) -> Operation:
        return cls(float(value))

    def infer(self, x: Meta) -> Meta:
        if not x.dtype.is_float_:
            raise UnsupportedDTypeForOpError(self.key, x.dtype, "bf16, f16, f32 or f64")
        return x

    def lower(self, x: mx.array) -> mx.array:
        return x / _number(self.value, x.dtype)

    @staticmethod
    def numpy(x: Any, value: float) -> Any:
        return x / value

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent / _number(self.value, cotangent.dtype),)

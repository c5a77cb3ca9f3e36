"""Records of one tensor, element by element: elementary functions, powers, dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...dtype import DType, DTypeLike
from ...kernels import double, elementary
from ...kernels.cast import cast
from ..operation import Gradients, Meta, Operation, Sample
from .elementwise import ANY_SHAPE, POSITIVE, UnaryAny, UnaryFloat


class Exp(UnaryFloat):
    """e to the power of each element."""

    candle = "Tensor::exp(&self) -> Result<Tensor>"
    methods = ("exp",)
    work = "exponential"

    @staticmethod
    def function(x: mx.array) -> mx.array:
        return elementary.exp.forward(x)[0]

    numpy = np.exp

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * output,)


class Log(UnaryFloat):
    """Natural logarithm; NaN for negative elements, -inf for 0."""

    candle = "Tensor::log(&self) -> Result<Tensor>"
    methods = ("log",)
    function = mx.log
    numpy = np.log
    samples = POSITIVE
    work = "exponential"


class Sin(UnaryFloat):
    """Sine, in radians."""

    candle = "Tensor::sin(&self) -> Result<Tensor>"
    methods = ("sin",)
    function = double.sin
    numpy = np.sin
    work = "elementary"

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * double.cos(inputs[0]),)


class Cos(UnaryFloat):
    """Cosine, in radians."""

    candle = "Tensor::cos(&self) -> Result<Tensor>"
    methods = ("cos",)
    function = double.cos
    numpy = np.cos
    work = "elementary"

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (-cotangent * double.sin(inputs[0]),)


class Tanh(UnaryFloat):
    """Hyperbolic tangent."""

    candle = "Tensor::tanh(&self) -> Result<Tensor>"
    methods = ("tanh",)
    function = mx.tanh
    numpy = np.tanh
    work = "elementary"

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * (1 - output * output),)


class Sqrt(UnaryFloat):
    """Square root; NaN for negative elements."""

    candle = "Tensor::sqrt(&self) -> Result<Tensor>"
    methods = ("sqrt",)
    function = mx.sqrt
    numpy = np.sqrt
    samples = POSITIVE

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * 0.5 / output,)


class Recip(UnaryFloat):
    """1 / x."""

    candle = "Tensor::recip(&self) -> Result<Tensor>"
    methods = ("recip",)
    function = mx.reciprocal
    numpy = np.reciprocal
    samples = POSITIVE


class Neg(UnaryAny):
    """-x; unsigned elements wrap (candle panics on integers)."""

    candle = "Tensor::neg(&self) -> Result<Tensor>"
    methods = ("neg",)
    function = mx.negative
    numpy = np.negative


class Sqr(UnaryAny):
    """x * x; integers wrap (candle panics on them)."""

    candle = "Tensor::sqr(&self) -> Result<Tensor>"
    methods = ("sqr",)
    function = mx.square
    numpy = np.square


class Abs(UnaryAny):
    """Absolute value; its gradient at 0 is +1, as candle's."""

    candle = "Tensor::abs(&self) -> Result<Tensor>"
    methods = ("abs",)
    function = mx.abs
    numpy = np.abs

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (mx.where(inputs[0] >= 0, cotangent, -cotangent),)


class Powf(UnaryFloat):
    """x to the power of a number; integers raise ``UnsupportedDTypeForOpError``."""

    candle = "Tensor::powf(&self, e: f64) -> Result<Tensor>"
    methods = ("powf",)
    samples = (
        *(Sample(sample.shapes, (2.5,), low=0.1, high=3.0) for sample in ANY_SHAPE),
        Sample(((5, 13),), (3.0,)),
        Sample(((5, 13),), (0.0,)),
        Sample(((5, 13),), (-1.0,), low=0.5, high=3.0),
    )
    work = "exponential"
    e: float

    @classmethod
    def bind(cls, x: Meta, e: float) -> Operation:
        return cls(float(e))

    def lower(self, x: mx.array) -> mx.array:
        return mx.power(x, mx.array(self.e, x.dtype))

    @staticmethod
    def numpy(x: Any, e: float) -> Any:
        return np.power(x, e)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        # x⁰ is 1 everywhere; the general rule would give 0 · 0⁻¹ = NaN at 0.
        if self.e == 0:
            return (mx.zeros_like(cotangent),)
        x = inputs[0]
        return (cotangent * self.e * mx.power(x, mx.array(self.e - 1, x.dtype)),)


class ToDtype(Operation):
    """The values in another dtype: float to integer truncates, saturates, and turns NaN into 0.

    Integers wrap in a narrower integer; F64 is rounded once to a half. The gradient passes between floats only.
    """

    candle = "Tensor::to_dtype(&self, dtype: DType) -> Result<Tensor>"
    methods = ("to_dtype",)
    samples = tuple(Sample(sample.shapes, (DType.F16,)) for sample in ANY_SHAPE)
    work = "move"
    dtype: DType

    @classmethod
    def bind(cls, x: Meta, dtype: DTypeLike) -> Operation:
        return cls(DType.of(dtype))

    def changes_nothing(self, x: Meta) -> bool:
        return self.dtype is x.dtype

    def infer(self, x: Meta) -> Meta:
        return Meta(x.shape, self.dtype)

    def lower(self, x: mx.array) -> mx.array:
        return cast(x, self.dtype.mlx_)

    @staticmethod
    def numpy(x: Any, dtype: DType) -> Any:
        return x.astype(str(dtype.mlx_).rpartition(".")[2])

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cast(cotangent, inputs[0].dtype),)

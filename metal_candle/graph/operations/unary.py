"""Records of one tensor, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from ...dtype import DType, DTypeLike
from ...error import UnsupportedDTypeForOpError
from ...kernels import elementary
from ..operation import Gradients, Meta, Operation, Sample

ANY_SHAPE = (Sample(((),)), Sample(((0,),)), Sample(((1,),)), Sample(((5, 123),)), Sample(((2, 3, 4),)))
POSITIVE = tuple(Sample(sample.shapes, low=0.1, high=3.0) for sample in ANY_SHAPE)


class UnaryFloat(Operation, abstract=True):
    """Family: one float tensor in, the same shape and dtype out."""

    samples: ClassVar[tuple[Sample, ...]] = ANY_SHAPE
    function: ClassVar[Callable[..., mx.array]]

    def infer(self, x: Meta) -> Meta:
        if not x.dtype.is_float_:
            raise UnsupportedDTypeForOpError(self.key, x.dtype, "bf16, f16, f32 or f64")
        return x

    def lower(self, x: mx.array) -> mx.array:
        return type(self).function(x)


class UnaryAny(UnaryFloat, abstract=True):
    """Family: one tensor of any dtype in, the same shape and dtype out."""

    def infer(self, x: Meta) -> Meta:
        return x


class Exp(UnaryFloat):
    """e to the power of each element."""

    candle = "Tensor::exp(&self) -> Result<Tensor>"
    methods = ("exp",)

    @staticmethod
    def function(x: mx.array) -> mx.array:
        return elementary.exp.forward(x)[0]

    numpy = np.exp

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * output,)


class Log(UnaryFloat):
    """Natural logarithm; NaN for negative elements."""

    candle = "Tensor::log(&self) -> Result<Tensor>"
    methods = ("log",)
    function = mx.log
    numpy = np.log
    samples = POSITIVE


class Sin(UnaryFloat):
    """Sine, in radians."""

    candle = "Tensor::sin(&self) -> Result<Tensor>"
    methods = ("sin",)
    function = mx.sin
    numpy = np.sin


class Cos(UnaryFloat):
    """Cosine, in radians."""

    candle = "Tensor::cos(&self) -> Result<Tensor>"
    methods = ("cos",)
    function = mx.cos
    numpy = np.cos


class Tanh(UnaryFloat):
    """Hyperbolic tangent."""

    candle = "Tensor::tanh(&self) -> Result<Tensor>"
    methods = ("tanh",)
    function = mx.tanh
    numpy = np.tanh

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


class Sigmoid(UnaryFloat):
    """1 / (1 + exp(-x))."""

    candle = "candle_nn::ops::sigmoid(xs: &Tensor) -> Result<Tensor>"
    methods = ("sigmoid",)

    @staticmethod
    def function(x: mx.array) -> mx.array:
        return elementary.sigmoid.forward(x)[0]

    @staticmethod
    def numpy(x: Any) -> Any:
        return 1 / (1 + np.exp(-x))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * output * (1 - output),)


class Silu(UnaryFloat):
    """x * sigmoid(x)."""

    candle = "Tensor::silu(&self) -> Result<Tensor>"
    methods = ("silu",)

    @staticmethod
    def function(x: mx.array) -> mx.array:
        return elementary.silu.forward(x)[0]

    @staticmethod
    def numpy(x: Any) -> Any:
        return x / (1 + np.exp(-x))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return elementary.silu.vjp(cotangent, inputs, output, needs)

    def lower_and_save(self, x: mx.array) -> tuple[mx.array, ...]:
        return elementary.silu.forward(x)


class Neg(UnaryAny):
    """-x; unsigned elements wrap."""

    candle = "Tensor::neg(&self) -> Result<Tensor>"
    methods = ("neg",)
    function = mx.negative
    numpy = np.negative


class Sqr(UnaryAny):
    """x * x."""

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


class Relu(UnaryAny):
    """max(x, 0); NaN stays NaN; its gradient at 0 is 1, as candle's."""

    candle = "Tensor::relu(&self) -> Result<Tensor>"
    methods = ("relu",)

    @staticmethod
    def function(x: mx.array) -> mx.array:
        return mx.maximum(x, mx.array(0, x.dtype))

    @staticmethod
    def numpy(x: Any) -> Any:
        return np.maximum(x, 0)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (mx.where(inputs[0] >= 0, cotangent, mx.array(0, cotangent.dtype)),)


class Affine(Operation):
    """x * mul + add, both numbers cast to the tensor's dtype first."""

    candle = "Tensor::affine(&self, mul: f64, add: f64) -> Result<Tensor>"
    methods = ("affine",)
    samples = tuple(Sample(sample.shapes, (1.5, -0.25)) for sample in ANY_SHAPE)
    mul: float
    add: float

    @classmethod
    def bind(cls, x: Meta, mul: float, add: float) -> Operation:
        return cls(mul, add)

    def infer(self, x: Meta) -> Meta:
        return x

    def lower(self, x: mx.array) -> mx.array:
        scaled = x if self.mul == 1 else x * mx.array(self.mul, x.dtype)
        return scaled if self.add == 0 else scaled + mx.array(self.add, x.dtype)

    @staticmethod
    def numpy(x: Any, mul: float, add: float) -> Any:
        return x * mul + add

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * mx.array(self.mul, cotangent.dtype),)


class MulScalar(Operation):
    """x * value, the number cast to the tensor's dtype first."""

    candle = "metal_candle::LazyTensor::mul_scalar(&self, value: f32) -> Result<LazyTensor>"
    methods = ("mul_scalar",)
    samples = tuple(Sample(sample.shapes, (0.5,)) for sample in ANY_SHAPE)
    value: float

    @classmethod
    def bind(cls, x: Meta, value: float) -> Operation:
        return cls(value)

    def infer(self, x: Meta) -> Meta:
        return x

    def lower(self, x: mx.array) -> mx.array:
        return x * mx.array(self.value, x.dtype)

    @staticmethod
    def numpy(x: Any, value: float) -> Any:
        return x * value

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * mx.array(self.value, cotangent.dtype),)


class Powf(UnaryFloat):
    """x to the power of a number."""

    candle = "Tensor::powf(&self, e: f64) -> Result<Tensor>"
    methods = ("powf",)
    samples = tuple(Sample(sample.shapes, (2.5,), low=0.1, high=3.0) for sample in ANY_SHAPE)
    e: float

    @classmethod
    def bind(cls, x: Meta, e: float) -> Operation:
        return cls(e)

    def lower(self, x: mx.array) -> mx.array:
        return mx.power(x, mx.array(self.e, x.dtype))

    @staticmethod
    def numpy(x: Any, e: float) -> Any:
        return np.power(x, e)


class ToDtype(Operation):
    """The values in another dtype: float to integer truncates, saturates, and turns NaN into 0."""

    candle = "Tensor::to_dtype(&self, dtype: DType) -> Result<Tensor>"
    methods = ("to_dtype",)
    samples = tuple(Sample(sample.shapes, (DType.F16,)) for sample in ANY_SHAPE)
    dtype: DType

    @classmethod
    def bind(cls, x: Meta, dtype: DTypeLike) -> Operation:
        return cls(DType.of(dtype))

    def infer(self, x: Meta) -> Meta:
        return Meta(x.shape, self.dtype)

    def lower(self, x: mx.array) -> mx.array:
        if self.dtype.is_float_ or not mx.issubdtype(x.dtype, mx.floating):
            return x.astype(self.dtype.mlx_)
        info = mx.iinfo(self.dtype.mlx_)
        # The range's upper end need not be exact in x's dtype: compare with the power of two above it.
        wide = x if x.dtype == mx.float64 else x.astype(mx.float32)
        low, high = mx.array(float(info.min), wide.dtype), mx.array(float(info.max) + 1, wide.dtype)
        inside = mx.where((wide > low) & (wide < high), wide, mx.array(0, wide.dtype)).astype(self.dtype.mlx_)
        top = mx.where(wide >= high, mx.array(info.max, self.dtype.mlx_), inside)
        return mx.where(wide <= low, mx.array(info.min, self.dtype.mlx_), top)

    @staticmethod
    def numpy(x: Any, dtype: DType) -> Any:
        return x.astype(str(dtype.mlx_).rpartition(".")[2])

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent.astype(inputs[0].dtype),)

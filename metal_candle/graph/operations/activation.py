"""Records of the activations of networks, element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels import elementary
from ...kernels.choice import or_zero
from ...kernels.erf import erf
from ...kernels.gelu_erf import gelu_erf
from ..operation import Gradients, Meta, Operation, Sample
from .elementwise import ANY_SHAPE, UnaryAny, UnaryFloat, in_float32

# gelu's tanh form is x · sigmoid(2·√(2/π)·(x + CUBIC·x³)), Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415.
SLOPE = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715
_numpy_erf = np.vectorize(math.erf, otypes=[np.float64])


class Relu(UnaryAny):
    """max(x, 0); NaN stays NaN (candle gives 0); its gradient at 0 is 1, as candle's."""

    candle = "Tensor::relu(&self) -> Result<Tensor>"
    methods = ("relu",)

    @staticmethod
    def function(x: mx.array) -> mx.array:
        return mx.maximum(x, mx.array(0, x.dtype))

    @staticmethod
    def numpy(x: Any) -> Any:
        return np.maximum(x, 0)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (or_zero(inputs[0] >= 0, cotangent),)


class Sigmoid(UnaryFloat):
    """1 / (1 + exp(-x))."""

    candle = "candle_nn::ops::sigmoid(xs: &Tensor) -> Result<Tensor>"
    methods = ("sigmoid",)
    work = "exponential"
    flops_per_element = 4

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
    work = "exponential"
    flops_per_element = 5

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


class Gelu(UnaryFloat):
    """x · Φ(x), Φ the normal distribution, in the tanh form: 0.5x(1 + tanh(√(2/π)(x + 0.044715x³))).

    ``gelu_erf`` is the exact form, which PyTorch and MLX call gelu. The gradient is the exact derivative of this form
    (candle's has constants of six digits).
    """

    candle = "Tensor::gelu(&self) -> Result<Tensor>"
    methods = ("gelu",)
    work = "exponential"
    flops_per_element = 9

    @staticmethod
    def function(x: mx.array) -> mx.array:
        return in_float32(lambda wide: wide * Gelu._gate(wide), x)

    @staticmethod
    def _gate(x: mx.array) -> mx.array:
        return elementary.sigmoid.forward(SLOPE * (x + CUBIC * x * mx.square(x)))[0]

    @staticmethod
    def numpy(x: Any) -> Any:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + CUBIC * x**3)))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        def slope(x: mx.array) -> mx.array:
            gate = Gelu._gate(x)
            return gate + x * gate * (1 - gate) * (SLOPE * (1 + 3 * CUBIC * mx.square(x)))

        return (cotangent * in_float32(slope, inputs[0]),)


class GeluErf(UnaryFloat):
    """x · Φ(x), Φ the normal distribution: 0.5x(1 + erf(x/√2)). https://arxiv.org/abs/1606.08415."""

    candle = "Tensor::gelu_erf(&self) -> Result<Tensor>"
    methods = ("gelu_erf",)
    work = "exponential"
    flops_per_element = 5

    @staticmethod
    def function(x: mx.array) -> mx.array:
        return gelu_erf.forward(x)[0]

    @staticmethod
    def numpy(x: Any) -> Any:
        return 0.5 * x * (1 + _numpy_erf(x / math.sqrt(2)))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return gelu_erf.vjp(cotangent, inputs, output, needs)


class Erf(UnaryFloat):
    """Error function, 2/√π · ∫ exp(-t²) dt from 0 to x."""

    candle = "Tensor::erf(&self) -> Result<Tensor>"
    methods = ("erf",)
    function = erf
    numpy = _numpy_erf
    work = "exponential"

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        def slope(x: mx.array) -> mx.array:
            return elementary.exp.forward(-mx.square(x))[0] * (2 / math.sqrt(math.pi))

        return (cotangent * in_float32(slope, inputs[0]),)


class Elu(UnaryFloat):
    """x where it is positive, else alpha · (exp(x) - 1); its gradient at 0 is alpha, as candle's.

    Clevert et al. 2015, https://arxiv.org/abs/1511.07289.
    """

    candle = "Tensor::elu(&self, alpha: f64) -> Result<Tensor>"
    methods = ("elu",)
    samples = (*(Sample(sample.shapes, (1.0,)) for sample in ANY_SHAPE), Sample(((5, 13),), (0.25,)))
    work = "elementary"
    flops_per_element = 3
    alpha: float

    @classmethod
    def bind(cls, x: Meta, alpha: float) -> Operation:
        return cls(float(alpha))

    def lower(self, x: mx.array) -> mx.array:
        # A choice by mx.where takes longer on the CPU.
        return in_float32(lambda wide: mx.maximum(wide, 0) + mx.expm1(mx.minimum(wide, 0)) * self.alpha, x)

    @staticmethod
    def numpy(x: Any, alpha: float) -> Any:
        return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        def slope(x: mx.array) -> mx.array:
            # The result and alpha, its difference, would cancel.
            above = (x > 0).astype(x.dtype)
            return above + (1 - above) * elementary.exp.forward(mx.minimum(x, 0))[0] * self.alpha

        return (cotangent * in_float32(slope, inputs[0]),)

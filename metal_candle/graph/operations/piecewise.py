"""Records of the activations that are put together of pieces, element by element, and of mish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import ShapeMismatchBinaryOpError
from ...kernels import elementary
from ...kernels.elementary import one_launch
from ...kernels.kernel import on_cpu
from ...kernels.slices import sliced
from ..operation import Gradients, Meta, Operation, Sample
from .binary import reduce_to
from .elementwise import ANY_SHAPE, UnaryFloat, in_float32
from .linalg import expect_floats


def _everywhere(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """``function`` of a float32 array and numbers for every float dtype, halves rounded once.

    On the CPU it goes through the cache's size at a time, on a GPU it is one launch.
    """

    def through_float32(x: mx.array, *numbers: float) -> mx.array:
        return function(x.astype(mx.float32), *numbers).astype(x.dtype)

    launched = one_launch(through_float32)

    def computed(x: mx.array, *numbers: float) -> mx.array:
        if not on_cpu():
            result: mx.array = launched(x, *numbers)
            return result
        return in_float32(lambda wide: sliced(lambda part: function(part, *numbers), wide), x)

    return computed


@_everywhere
def _hard_sigmoid(x: mx.array) -> mx.array:
    return mx.clip((x + 3) / 6, 0, 1)


class HardSigmoid(UnaryFloat):
    """(x + 3) / 6 kept within 0 and 1; at ±3 half of the gradient passes, as in candle.

    Howard et al. 2019, https://arxiv.org/abs/1905.02244, section 5.2.
    """

    candle = "candle_nn::ops::hard_sigmoid(xs: &Tensor) -> Result<Tensor>"
    samples = (*ANY_SHAPE, Sample(((5, 13),), low=-8.0, high=8.0))
    flops_per_element = 4

    @staticmethod
    def function(x: mx.array) -> mx.array:
        return _hard_sigmoid(x)

    @staticmethod
    def numpy(x: Any) -> Any:
        return np.clip((x + 3) / 6, 0, 1)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        size = mx.abs(inputs[0])
        inside, upto = (size < 3).astype(cotangent.dtype), (size <= 3).astype(cotangent.dtype)
        return (cotangent * ((inside + upto) / 12),)


@_everywhere
def _leaky_relu(x: mx.array, negative_slope: float) -> mx.array:
    # A choice by mx.where takes five times as long on the CPU.
    return mx.maximum(x, 0) + mx.minimum(x, 0) * negative_slope


class LeakyRelu(UnaryFloat):
    """x where it is positive, else negative_slope · x; at 0 the gradient is the mean of both slopes, as in candle.

    Maas et al. 2013, "Rectifier nonlinearities improve neural network acoustic models".
    """

    candle = "candle_nn::ops::leaky_relu(xs: &Tensor, negative_slope: f64) -> Result<Tensor>"
    samples = (*(Sample(sample.shapes, (0.01,)) for sample in ANY_SHAPE), Sample(((5, 13),), (1.5,)))
    flops_per_element = 2
    negative_slope: float

    def lower(self, x: mx.array) -> mx.array:
        return _leaky_relu(x, self.negative_slope)

    @staticmethod
    def numpy(x: Any, negative_slope: float) -> Any:
        return np.where(x > 0, x, x * negative_slope)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * _slope(inputs[0], mx.array(self.negative_slope, cotangent.dtype)),)


class PRelu(Operation):
    """x where it is positive, else weight · x, the weight broadcast to x; at 0 as ``LeakyRelu``.

    He et al. 2015, https://arxiv.org/abs/1502.01852.
    """

    key = "prelu"
    arity = 2
    candle = "candle_nn::PReLU::forward(&self, xs: &Tensor) -> Result<Tensor>"
    samples = (
        Sample(((5, 13), ())),
        Sample(((2, 3, 4), (3, 1))),
        Sample(((2, 3, 4), (1, 3, 1))),
        Sample(((7,), (7,))),
        Sample(((0, 3), (3,))),
    )
    flops_per_element = 2

    def infer(self, x: Meta, weight: Meta) -> Meta:
        expect_floats(self.key, x, weight)
        sizes = x.shape[len(x.shape) - len(weight.shape) :]
        if len(weight.shape) > len(x.shape) or any(a not in (1, b) for a, b in zip(weight.shape, sizes)):
            raise ShapeMismatchBinaryOpError(self.key, x.shape, weight.shape, "a weight that broadcasts to the tensor")
        return x

    def lower(self, x: mx.array, weight: mx.array) -> mx.array:
        zero = mx.array(0, x.dtype)
        return mx.maximum(x, zero) + mx.minimum(x, zero) * weight

    @staticmethod
    def numpy(x: Any, weight: Any) -> Any:
        return np.where(x > 0, x, x * weight)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        x, weight = inputs
        of_x = cotangent * _slope(x, weight) if needs[0] else None
        zero = mx.array(0, x.dtype)
        return of_x, reduce_to(cotangent * mx.minimum(x, zero), weight) if needs[1] else None


def _slope(x: mx.array, below: mx.array) -> mx.array:
    """1 for positive x, ``below`` for negative, the mean of both at 0."""
    share = mx.sign(x) * 0.5 + 0.5
    return share + (1 - share) * below


@_everywhere
def _selu(x: mx.array, alpha: float, gamma: float) -> mx.array:
    return (mx.maximum(x, 0) + mx.expm1(mx.minimum(x, 0)) * alpha) * gamma


@_everywhere
def _slope_of_selu(x: mx.array, alpha: float, gamma: float) -> mx.array:
    above = (x > 0).astype(x.dtype)
    return (above + (1 - above) * elementary.exp.forward(mx.minimum(x, 0))[0] * alpha) * gamma


class Selu(UnaryFloat):
    """gamma · (x where it is positive, else alpha · (exp(x) - 1)); its gradient at 0 is gamma · alpha, as candle's.

    Klambauer et al. 2017, https://arxiv.org/abs/1706.02515, with alpha 1.67326… and gamma 1.05070….
    """

    candle = "candle_nn::ops::selu(xs: &Tensor, alpha: f32, gamma: f32) -> Result<Tensor>"
    samples = (
        *(Sample(sample.shapes, (1.6732632423543772, 1.0507009873554805)) for sample in ANY_SHAPE),
        Sample(((5, 13),), (0.25, 2.0)),
    )
    work = "elementary"
    flops_per_element = 4
    alpha: float
    gamma: float

    def lower(self, x: mx.array) -> mx.array:
        return _selu(x, self.alpha, self.gamma)

    @staticmethod
    def numpy(x: Any, alpha: float, gamma: float) -> Any:
        return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * _slope_of_selu(inputs[0], self.alpha, self.gamma),)


# From here on tanh(ln(1 + exp(x))) is 1 to the last digit of float64, and exp(x) to the fourth fits float32.
ONE_FROM = 20.0


@_everywhere
def _mish(x: mx.array) -> mx.array:
    # With e = exp(x), tanh(ln(1 + e)) is ((1 + e)² - 1) / ((1 + e)² + 1): of positive terms alone.
    power = elementary.exp.forward(mx.minimum(x, ONE_FROM))[0]
    part = power * (power + 2)
    return x * (part / (part + 2))


@_everywhere
def _slope_of_mish(x: mx.array) -> mx.array:
    low = mx.minimum(x, ONE_FROM)
    power = elementary.exp.forward(low)[0]
    part = power * (power + 2)
    # x · sigmoid(x) · (1 - tanh²) with the sigmoid and the square written out in e.
    return part / (part + 2) + low * (4 * power * (power + 1) / mx.square(part + 2))


class Mish(UnaryFloat):
    """x · tanh(ln(1 + exp(x))); value and gradient are finite for every finite x (candle's gradient is NaN from 89 on).

    Misra 2019, https://arxiv.org/abs/1908.08681.
    """

    candle = "candle_nn::ops::mish(xs: &Tensor) -> Result<Tensor>"
    samples = (*ANY_SHAPE, Sample(((5, 13),), low=-30.0, high=30.0))
    work = "exponential"
    flops_per_element = 12

    @staticmethod
    def function(x: mx.array) -> mx.array:
        return _mish(x)

    @staticmethod
    def numpy(x: Any) -> Any:
        return x * np.tanh(np.logaddexp(0, x))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * _slope_of_mish(inputs[0]),)

"""Records that draw random numbers. Each takes a key, so that a node is drawn once and never merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import mlx.core as mx

from ...device import Device
from ...dtype import DType
from ...error import ArgumentValueError, UnsupportedDTypeForOpError
from ...shape import Shape
from ..node import GraphNode, current_trace, leaf, placeholder
from ..operation import Gradients, Meta, Operation
from ..work import Work
from .elementwise import in_float32

KEY = Meta(Shape((2,)), DType.U32)


def next_key() -> mx.array:
    """A fresh key from MLX's generator, which ``set_seed`` seeds."""
    return mx.random.randint(0, 2**32 - 1, (2,), mx.uint32)


def random_key(device: Device) -> GraphNode:
    """A leaf with a fresh key; in a traced function a placeholder that gets one at each call."""
    trace = current_trace()
    if trace is None:
        return leaf(next_key(), device)
    node = placeholder(KEY, device)
    trace.keys.append(node)
    return node


class Draw(Operation, abstract=True):
    """Family: numbers of a shape from a key."""

    differentiable = False
    work: ClassVar[Work] = "random"

    @staticmethod
    def check(dtype: DType, name: str) -> None:
        """Raise unless random numbers of this dtype exist."""
        if not dtype.is_float_:
            raise UnsupportedDTypeForOpError(name, dtype, "bf16, f16, f32 or f64")


class Uniform(Draw):
    """Uniform in ``[low, high)``; F64 is drawn in F32."""

    candle = "Tensor::rand<S, T>(lo: T, up: T, s: S, device: &Device) -> Result<Tensor>"
    low: float
    high: float
    shape: Shape
    dtype: DType

    def infer(self, key: Meta) -> Meta:
        self.check(self.dtype, "rand")
        return Meta(self.shape, self.dtype)

    def lower(self, key: mx.array) -> mx.array:
        draw = mx.random.uniform(self.low, self.high, self.shape, mx.float32, key).astype(self.dtype.mlx_)
        # Rounding to the bounds' neighbourhood may reach the upper one, which is not part of the range.
        return mx.where(draw < mx.array(self.high, draw.dtype), draw, mx.array(self.low, draw.dtype))


class Normal(Draw):
    """Normal with a mean and a standard deviation."""

    candle = "Tensor::randn<S, T>(mean: T, std: T, s: S, device: &Device) -> Result<Tensor>"
    work = "normal"
    mean: float
    std: float
    shape: Shape
    dtype: DType

    def infer(self, key: Meta) -> Meta:
        self.check(self.dtype, "randn")
        return Meta(self.shape, self.dtype)

    def lower(self, key: mx.array) -> mx.array:
        return mx.random.normal(self.shape, mx.float32, self.mean, self.std, key).astype(self.dtype.mlx_)


class Dropout(Operation):
    """Elements set to 0 with probability ``p``, the others scaled by 1 / (1 - p).

    Inputs: the tensor and a key. The gradient sees the mask of the forward pass. Of F16 and BF16 each element is scaled
    in float32 and rounded once: the factor rounded to them would move the mean, by up to one part in 500.

    Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html.
    """

    arity = 2
    candle = "candle_nn::ops::dropout(xs: &Tensor, drop_p: f32) -> Result<Tensor>"
    work = "random"
    flops_per_element = 3
    p: float

    def infer(self, x: Meta, key: Meta) -> Meta:
        if not 0 <= self.p < 1:
            raise ArgumentValueError(f"dropout: got drop_p {self.p}; takes 0 <= drop_p < 1")
        if not x.dtype.is_float_:
            raise UnsupportedDTypeForOpError("dropout", x.dtype, "bf16, f16, f32 or f64")
        return x

    def lower(self, x: mx.array, key: mx.array) -> mx.array:
        return self.lower_and_save(x, key)[0]

    def lower_and_save(self, x: mx.array, key: mx.array) -> tuple[mx.array, ...]:
        keep = self._kept(x, key)
        return self._scaled(x, keep), keep

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        # Drawing takes ten times as long as scaling.
        keep = output[1] if isinstance(output, tuple) else self._kept(*inputs)
        return self._scaled(cotangent, keep), None

    def _kept(self, x: mx.array, key: mx.array) -> mx.array:
        """Which elements stay, drawn with 16 bits each where these give 1 - p within one part in 100,000, else 32."""
        kind, top = mx.uint16, 1 << 16
        if abs(round(self.p * top) / top - self.p) > 1e-5 * (1 - self.p):
            kind, top = mx.uint32, 1 << 32
        if not x.size:
            return mx.zeros(x.shape, mx.bool_)
        # Keys are plain random bits, eight bytes each; uniform floats take twice the time of 16 bits.
        bits = mx.random.split(key, -(-x.size * kind.size // 8)).view(kind).reshape(-1)
        return (bits[: x.size] >= mx.array(min(round(self.p * top), top - 1), kind)).reshape(x.shape)

    def _scaled(self, x: mx.array, keep: mx.array) -> mx.array:
        # A product, so that NaN and infinity show wherever they are, as in candle.
        return in_float32(lambda wide: wide * (keep.astype(wide.dtype) * mx.array(1 / (1 - self.p), wide.dtype)), x)

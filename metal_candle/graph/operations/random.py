"""Records that draw random numbers. Each takes a key, so that a node is drawn once and never merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import mlx.core as mx

from ...device import Device
from ...dtype import DType
from ...error import TrainingError, UnsupportedDTypeForOpError
from ...shape import Shape
from ..node import GraphNode, current_trace, leaf, placeholder
from ..operation import Gradients, Meta, Operation
from ..work import Work

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

    Inputs: the tensor and a key. The gradient sees the mask of the forward pass.
    """

    arity = 2
    candle = "candle_nn::ops::dropout(xs: &Tensor, drop_p: f32) -> Result<Tensor>"
    work = "random"
    flops_per_element = 4
    p: float

    def infer(self, x: Meta, key: Meta) -> Meta:
        if not 0 <= self.p < 1:
            raise TrainingError.InvalidConfig(reason=f"dropout is {self.p}; takes 0 <= p < 1")
        return x

    def _scaled_mask(self, x: mx.array, key: mx.array) -> mx.array:
        keep = mx.random.uniform(shape=x.shape, key=key) >= self.p
        return keep.astype(x.dtype) * mx.array(1 / (1 - self.p), x.dtype)

    def lower(self, x: mx.array, key: mx.array) -> mx.array:
        return x * self._scaled_mask(x, key)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return cotangent * self._scaled_mask(*inputs), None

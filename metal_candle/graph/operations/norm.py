"""Records that normalise along a dim: softmax and the norms of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import ShapeMismatchBinaryOpError, ShapeMismatchError
from ...kernels import elementary, softmax_backward
from ...kernels.layer_norm import layer_norm
from ...kernels.rms_norm import rms_norm
from ...kernels.softmax import log_softmax, softmax
from ...shape import DimLike, resolve_dim
from ..operation import Gradients, Meta, Metas, Operation, Sample
from ..work import elements
from .counts import epsilon
from .linalg import expect_floats


class Softmax(Operation):
    """exp(x) / sum(exp(x)) along a dim, shifted by its maximum; sums in float32."""

    candle = "candle_nn::ops::softmax<D: Dim>(xs: &Tensor, dim: D) -> Result<Tensor>"
    methods = ("softmax",)
    samples = (
        Sample(((5, 123),), (1,)),
        Sample(((2, 3, 4),), (0,)),
        Sample(((1,),), (0,)),
        Sample(((2, 0),), (1,)),
    )
    work = "softmax"
    flops_per_element = 5
    dim: int

    @classmethod
    def bind(cls, x: Meta, dim: DimLike) -> Operation:
        return cls(resolve_dim(dim, x.shape, "softmax"))

    def infer(self, x: Meta) -> Meta:
        expect_floats("softmax", x)
        resolve_dim(self.dim, x.shape, "softmax")
        return x

    def lower(self, x: mx.array) -> mx.array:
        if x.size == 0:  # MLX takes no maximum of nothing
            return x
        if self.dim in (-1, x.ndim - 1):
            return softmax.forward(x)[0]
        return mx.swapaxes(softmax.forward(mx.swapaxes(x, self.dim, -1))[0], self.dim, -1)

    @staticmethod
    def numpy(x: Any, dim: int) -> Any:
        e = np.exp(x - x.max(axis=dim, keepdims=True, initial=-np.inf))
        return e / e.sum(axis=dim, keepdims=True)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        found = softmax_backward.launched(output, cotangent) if self.dim in (-1, output.ndim - 1) else None
        if found is None:
            inner = (cotangent * output).sum(axis=self.dim, keepdims=True)
            found = output * (cotangent - inner)
        return (found,)


class LogSoftmax(Operation):
    """x - log(sum(exp(x))) along a dim."""

    candle = "candle_nn::ops::log_softmax<D: Dim>(xs: &Tensor, d: D) -> Result<Tensor>"
    methods = ("log_softmax",)
    samples = (Sample(((5, 123),), (1,)), Sample(((2, 3, 4),), (0,)), Sample(((2, 0),), (1,)))
    work = "softmax"
    flops_per_element = 5
    dim: int

    @classmethod
    def bind(cls, x: Meta, dim: DimLike) -> Operation:
        return cls(resolve_dim(dim, x.shape, "log_softmax"))

    def infer(self, x: Meta) -> Meta:
        expect_floats("log_softmax", x)
        return x

    def lower(self, x: mx.array) -> mx.array:
        if x.size == 0:  # MLX takes no maximum of nothing
            return x
        if self.dim in (-1, x.ndim - 1):
            return log_softmax.forward(x)[0]
        return mx.swapaxes(log_softmax.forward(mx.swapaxes(x, self.dim, -1))[0], self.dim, -1)

    @staticmethod
    def numpy(x: Any, dim: int) -> Any:
        shifted = x - x.max(axis=dim, keepdims=True, initial=-np.inf)
        return shifted - np.log(np.exp(shifted).sum(axis=dim, keepdims=True))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        found = softmax_backward.launched(output, cotangent, True) if self.dim in (-1, output.ndim - 1) else None
        if found is None:
            found = cotangent - elementary.exp.forward(output)[0] * cotangent.sum(axis=self.dim, keepdims=True)
        return (found,)


class RMSNorm(Operation):
    """x / sqrt(mean(x²) + eps) over the last dim, without a weight."""

    key = "rms_norm"
    candle = "metal_candle::LazyTensor::rms_norm(&self, eps: f32) -> Result<LazyTensor>"
    methods = ("rms_norm", "rms_norm_fused")
    samples = (Sample(((5, 123),), (1e-5,)), Sample(((2, 3, 4),), (1e-5,)), Sample(((7,),), (1e-5,)))
    work = "norm"
    flops_per_element = 3
    eps: float

    @classmethod
    def bind(cls, x: Meta, eps: float) -> Operation:
        return cls(epsilon(cls.key, eps))

    def infer(self, x: Meta) -> Meta:
        expect_floats("rms_norm", x)
        resolve_dim(-1, x.shape, "rms_norm")
        return x

    def lower(self, x: mx.array) -> mx.array:
        return rms_norm.forward(x, None, self.eps)[0]

    def lower_and_save(self, x: mx.array) -> tuple[mx.array, ...]:
        return rms_norm.forward(x, None, self.eps)

    @staticmethod
    def numpy(x: Any, eps: float) -> Any:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return rms_norm.vjp(cotangent, (inputs[0], None), output, (True, False), self.eps)[:1]


class WeightedRMSNorm(Operation):
    """x / sqrt(mean(x²) + eps) · weight over the last dim; weight ``(n,)``."""

    key = "weighted_rms_norm"
    arity = 2
    candle = "candle_nn::ops::rms_norm(xs: &Tensor, alpha: &Tensor, eps: f32) -> Result<Tensor>"
    samples = (Sample(((5, 123), (123,)), (1e-5,)), Sample(((2, 3, 4), (4,)), (1e-5,)))
    work = "norm"
    flops_per_element = 4
    eps: float

    def infer(self, x: Meta, weight: Meta) -> Meta:
        expect_floats("rms_norm", x, weight)
        if not x.shape or tuple(weight.shape) != (x.shape[-1],):
            raise ShapeMismatchBinaryOpError("rms_norm", x.shape, weight.shape, "(…, n) and weight (n,)")
        return x

    def lower(self, x: mx.array, weight: mx.array) -> mx.array:
        return rms_norm.forward(x, weight, self.eps)[0]

    def lower_and_save(self, x: mx.array, weight: mx.array) -> tuple[mx.array, ...]:
        return rms_norm.forward(x, weight, self.eps)

    @staticmethod
    def numpy(x: Any, weight: Any, eps: float) -> Any:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return rms_norm.vjp(cotangent, inputs, output, needs, self.eps)


class LayerNorm(Operation):
    """(x - mean) / sqrt(variance + eps) over the last dim, then · weight and + bias where they are given.

    The variance is biased; weight and bias ``(n,)``. Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """

    arity = None
    candle = "candle_nn::ops::layer_norm(xs: &Tensor, alpha: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor>"
    methods = ("layer_norm",)
    samples = (
        Sample(((5, 123),), (1e-5,)),
        Sample(((2, 3, 4), (4,)), (1e-5,)),
        Sample(((5, 123), (123,), (123,)), (1e-5,)),
    )
    work = "norm"
    eps: float

    @classmethod
    def bind(cls, x: Meta, eps: float) -> Operation:
        return cls(epsilon(cls.key, eps))

    def infer(self, x: Meta, *weight_and_bias: Meta) -> Meta:
        expect_floats("layer_norm", x, *weight_and_bias)
        resolve_dim(-1, x.shape, "layer_norm")
        if len(weight_and_bias) > 2:
            raise ShapeMismatchError(
                f"layer_norm: got {1 + len(weight_and_bias)} tensors; takes x, a weight and a bias"
            )
        for other in weight_and_bias:
            if tuple(other.shape) != (x.shape[-1],):
                takes = "(…, n) and weight and bias (n,)"
                raise ShapeMismatchBinaryOpError("layer_norm", x.shape, other.shape, takes)
        return x

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        # Mean, difference, square, sum and scale, then · weight and + bias.
        return (5 + len(inputs[1:])) * elements(output)

    def lower(self, x: mx.array, *weight_and_bias: mx.array) -> mx.array:
        return layer_norm.forward(*self._three(x, *weight_and_bias), self.eps)[0]

    def lower_and_save(self, x: mx.array, *weight_and_bias: mx.array) -> tuple[mx.array, ...]:
        return layer_norm.forward(*self._three(x, *weight_and_bias), self.eps)

    @staticmethod
    def _three(*inputs: mx.array) -> tuple[mx.array | None, ...]:
        """The inputs, ``None`` for a weight or a bias that is not given."""
        return (*inputs, None, None)[:3]

    @staticmethod
    def numpy(x: Any, *rest: Any) -> Any:
        centred = x - np.mean(x, axis=-1, keepdims=True)
        normed = centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + rest[-1])
        weight = rest[0] if len(rest) > 1 else 1.0
        return normed * weight + (rest[1] if len(rest) > 2 else 0.0)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        wanted = (*needs, False, False)[:3]
        return layer_norm.vjp(cotangent, self._three(*inputs), output, wanted, self.eps)[: len(inputs)]

"""Functions of v1 on tensors. Eager in, eager out; lazy in, lazy out. All are differentiable."""

from __future__ import annotations

from typing import TypeVar

from ..graph.operations.norm import LayerNorm, WeightedRMSNorm
from ..shape import DimLike
from ..tensor.base import TensorBase
from ..tensor.written import WrittenMethods

T = TypeVar("T", bound=WrittenMethods)


def softmax(x: T, dim: DimLike) -> T:
    """Softmax along a dim, of the same shape and dtype. Raises ``DimOutOfRangeError``.

    candle: ``candle_nn::ops::softmax<D: Dim>(xs: &Tensor, dim: D) -> Result<Tensor>``
    """
    return x.softmax(dim)


def rms_norm(x: T, alpha: TensorBase, eps: float) -> T:
    """``x / sqrt(mean(x²) + eps) · alpha`` over the last dim n, alpha ``(n,)``.

    Raises ``ShapeMismatchBinaryOpError``.

    candle: ``candle_nn::ops::rms_norm(xs: &Tensor, alpha: &Tensor, eps: f32) -> Result<Tensor>``
    """
    return x._record(WeightedRMSNorm(eps), x._lift(alpha))


def layer_norm(x: T, alpha: TensorBase, beta: TensorBase, eps: float) -> T:
    """``(x - mean) / sqrt(variance + eps) · alpha + beta`` over the last dim n, alpha and beta ``(n,)``.

    Raises ``ShapeMismatchBinaryOpError``.

    candle: ``candle_nn::ops::layer_norm(xs: &Tensor, alpha: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor>``
    """
    return x._record(LayerNorm(eps), x._lift(alpha), x._lift(beta))

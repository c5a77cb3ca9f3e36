"""Norms spelled out in plain operations. candle: ``candle_nn::ops``, re-exported there here too."""

from __future__ import annotations

from typing import Any, TypeVar

from ..dtype import DType
from ..error import ShapeMismatchBinaryOpError
from ..graph.operations.counts import number
from ..tensor.arguments import expect_tensor
from ..tensor.base import TensorBase

T = TypeVar("T", bound=Any)


def rms_norm_slow(xs: T, alpha: TensorBase, eps: float) -> T:
    """``rms_norm`` in plain operations, which graphs are rewritten from; alpha ``(n,)``."""
    result: T = _normed("rms_norm_slow", xs, (alpha,), eps, False).broadcast_mul(xs._lift(alpha))
    return result


def layer_norm_slow(xs: T, alpha: TensorBase, beta: TensorBase, eps: float) -> T:
    """``layer_norm`` in plain operations, which graphs are rewritten from; alpha and beta ``(n,)``."""
    normed = _normed("layer_norm_slow", xs, (alpha, beta), eps, True)
    result: T = normed.broadcast_mul(xs._lift(alpha)).broadcast_add(xs._lift(beta))
    return result


def _normed(op: str, xs: Any, beside: tuple[TensorBase, ...], eps: float, remove_mean: bool) -> Any:
    expect_tensor(op, xs, "xs")
    eps = number(op, "eps", eps)
    for row, name in zip(beside, ("alpha", "beta")):
        expect_tensor(op, row, name)
        if not xs.shape or tuple(row.shape) != (xs.shape[-1],):
            raise ShapeMismatchBinaryOpError(op, xs.shape, row.shape, "(…, n) and rows (n,)")
    wide = xs.to_dtype(DType.F32) if xs.dtype in (DType.F16, DType.BF16) else xs
    if remove_mean:
        wide = wide.broadcast_sub(wide.mean_keepdim(-1))
    root = (wide.sqr().mean_keepdim(-1) + eps).sqrt()
    return wide.broadcast_div(root).to_dtype(xs.dtype)

"""Functions on tensors. candle: ``candle_nn::ops``. All are differentiable."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from ..constructors import Default
from ..error import ArgumentValueError, ShapeMismatchError
from ..graph.node import record
from ..graph.operations.counts import epsilon, number
from ..graph.operations.fused import Sdpa, Swiglu
from ..graph.operations.norm import LayerNorm, WeightedRMSNorm
from ..graph.operations.piecewise import HardSigmoid, LeakyRelu, Mish, Selu
from ..graph.operations.random import Dropout, random_key
from ..graph.operations.softcap import Softcap
from ..shape import DimLike, resolve_dim
from ..tensor.arguments import boolean, expect_tensor
from ..tensor.base import TensorBase
from .capped_attention import capped_attention
from .module import Module
from .pixels import pixel_shuffle as pixel_shuffle
from .pixels import pixel_unshuffle as pixel_unshuffle
from .pixels import replication_pad2d as replication_pad2d
from .plain_norms import layer_norm_slow as layer_norm_slow
from .plain_norms import rms_norm_slow as rms_norm_slow

T = TypeVar("T", bound=Any)


def softmax(xs: T, dim: DimLike) -> T:
    """Softmax along a dim."""
    expect_tensor("softmax", xs)
    result: T = xs.softmax(dim)
    return result


def softmax_last_dim(xs: T) -> T:
    """Softmax along the last dim."""
    expect_tensor("softmax_last_dim", xs)
    result: T = xs.softmax(-1)
    return result


def log_softmax(xs: T, dim: DimLike) -> T:
    """Logarithm of the softmax along a dim."""
    expect_tensor("log_softmax", xs)
    result: T = xs.log_softmax(dim)
    return result


def silu(xs: T) -> T:
    """x · sigmoid(x)."""
    expect_tensor("silu", xs)
    result: T = xs.silu()
    return result


def sigmoid(xs: T) -> T:
    """1 / (1 + exp(-x)). Raises ``UnsupportedDTypeForOpError`` for integers, as do the functions below."""
    expect_tensor("sigmoid", xs)
    result: T = xs.sigmoid()
    return result


def hard_sigmoid(xs: T) -> T:
    """(x + 3) / 6 kept within 0 and 1."""
    expect_tensor("hard_sigmoid", xs)
    result: T = xs._record(HardSigmoid())
    return result


def mish(xs: T) -> T:
    """x · tanh(ln(1 + exp(x))); value and gradient are finite for every finite x."""
    expect_tensor("mish", xs)
    result: T = xs._record(Mish())
    return result


def leaky_relu(xs: T, negative_slope: float) -> T:
    """x where it is positive, else negative_slope · x; at 0 the gradient is the mean of both slopes."""
    expect_tensor("leaky_relu", xs)
    result: T = xs._record(LeakyRelu(number("leaky_relu", "negative_slope", negative_slope)))
    return result


def selu(xs: T, alpha: float, gamma: float) -> T:
    """gamma · (x where it is positive, else alpha · (exp(x) - 1)), in every float dtype; candle's takes F32 only.

    Klambauer et al. 2017 have alpha 1.6732632423543772 and gamma 1.0507009873554805.
    """
    expect_tensor("selu", xs)
    result: T = xs._record(Selu(number("selu", "alpha", alpha), number("selu", "gamma", gamma)))
    return result


def swiglu(xs: T) -> T:
    """The last dim in two halves: silu(first) · second. Raises ``ShapeMismatchError`` where its size is odd."""
    expect_tensor("swiglu", xs)
    dim = resolve_dim(-1, xs.shape, "swiglu")
    half, rest = divmod(xs.shape[dim], 2)
    if rest:
        raise ShapeMismatchError(f"swiglu: got shape {tuple(xs.shape)}; takes a last dim of even size")
    result: T = silu_mul(xs.narrow(dim, 0, half), xs.narrow(dim, half, half))
    return result


def silu_mul(gate: T, up: T) -> T:
    """silu(gate) · up in one operation, of equal shapes."""
    expect_tensor("silu_mul", gate, "gate")
    expect_tensor("silu_mul", up, "up")
    result: T = gate._record(Swiglu(), up)
    return result


def rms_norm(xs: T, alpha: TensorBase, eps: float) -> T:
    """``x / sqrt(mean(x²) + eps) · alpha`` over the last dim."""
    expect_tensor("rms_norm", xs, "xs")
    result: T = xs._record(WeightedRMSNorm(epsilon("rms_norm", eps)), xs._lift(alpha))
    return result


def layer_norm(xs: T, alpha: TensorBase, beta: TensorBase, eps: float) -> T:
    """``(x - mean) / sqrt(variance + eps) · alpha + beta`` over the last dim; alpha and beta ``(n,)``."""
    expect_tensor("layer_norm", xs, "xs")
    result: T = xs._record(LayerNorm(epsilon("layer_norm", eps)), xs._lift(alpha), xs._lift(beta))
    return result


def softcap(xs: T, cap: float) -> T:
    """cap · tanh(xs / cap) in one operation, as Gemma 2 caps its logits. candle spells it out.

    Raises ``ArgumentTypeError`` for a cap that is no number, ``ArgumentValueError`` for one that is not positive and
    finite.
    """
    expect_tensor("softcap", xs)
    if not 0 < number("softcap", "cap", cap) < math.inf:
        raise ArgumentValueError(f"softcap: got cap {cap}; takes a positive number")
    result: T = xs._record(Softcap(cap))
    return result


def dropout(xs: T, drop_p: float) -> T:
    """Elements set to 0 with probability ``drop_p``, the others scaled by 1 / (1 - drop_p).

    Each call draws anew from the generator that ``Device.set_seed`` seeds, but none for 0: that gives the tensor
    itself. Raises ``ArgumentValueError`` unless 0 <= drop_p < 1, ``UnsupportedDTypeForOpError`` for integers.
    """
    expect_tensor("dropout", xs)
    operation = Dropout(number("dropout", "drop_p", drop_p))
    if operation.p == 0:
        return xs
    result: T = xs._wrap(record(operation, (xs._node, random_key(xs.device))))
    return result


def sdpa(
    q: T,
    k: T,
    v: T,
    mask: TensorBase | None = None,
    do_causal: bool = False,
    scale: float | None = None,
    softcapping: float = 1.0,
) -> T:
    """softmax(scale · q · kᵀ + mask) · v for ``(b, h, s, d)``; k and v may have fewer heads.

    A ``scale`` that is left out, which candle has no default for, is 1 / sqrt(d), as everywhere.
    ``do_causal`` hides later keys, aligned bottom-right. A ``softcapping`` other than 1.0, which is off, replaces the
    scores by ``softcapping · tanh(scale · q · kᵀ / softcapping)`` before the mask. Raises ``ShapeMismatchError`` where
    both a mask and ``do_causal`` are given, ``ArgumentValueError`` for a ``softcapping`` that is not positive.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        expect_tensor("sdpa", tensor, name)
    factor = number("sdpa", "scale", 1 / math.sqrt(max(1, *q.shape[-1:])) if scale is None else scale)
    do_causal = boolean("sdpa", "do_causal", do_causal)
    if mask is not None and do_causal:
        raise ShapeMismatchError("sdpa: got a mask and do_causal; takes one of them")
    if softcapping != 1.0:
        return capped_attention(q, k, v, mask, do_causal, factor, softcapping)
    masks = () if mask is None else (q._lift(mask),)
    result: T = q._record(Sdpa(factor, do_causal), k, v, *masks)
    return result


class Identity(Default, Module):
    """What it is given. candle: ``candle_nn::ops::Identity``."""

    def forward(self, xs: T) -> T:
        """The tensor itself."""
        return xs

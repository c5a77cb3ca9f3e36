"""Functions on tensors. candle: ``candle_nn::ops``. All are differentiable."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeVar

from ..error import ArgumentTypeError, ArgumentValueError, ShapeMismatchError
from ..error.text import described
from ..graph.node import record
from ..graph.operations.fused import Rope, Sdpa, Swiglu
from ..graph.operations.norm import WeightedRMSNorm
from ..graph.operations.random import Dropout, random_key
from ..graph.operations.softcap import Softcap
from ..shape import DimLike
from ..tensor.base import TensorBase
from .capped_attention import capped_attention

T = TypeVar("T", bound=Any)


def softmax(xs: T, dim: DimLike) -> T:
    """Softmax along a dim."""
    result: T = xs.softmax(dim)
    return result


def softmax_last_dim(xs: T) -> T:
    """Softmax along the last dim."""
    return softmax(xs, -1)


def log_softmax(xs: T, dim: DimLike) -> T:
    """Logarithm of the softmax along a dim."""
    result: T = xs.log_softmax(dim)
    return result


def silu(xs: T) -> T:
    """x · sigmoid(x)."""
    result: T = xs.silu()
    return result


def sigmoid(xs: T) -> T:
    """1 / (1 + exp(-x))."""
    result: T = xs.sigmoid()
    return result


def swiglu(xs: T) -> T:
    """The last dim in two halves: silu(first) · second."""
    gate, up = xs.chunk(2, -1)
    result: T = silu_mul(gate, up)
    return result


def silu_mul(gate: T, up: T) -> T:
    """silu(gate) · up in one operation, of equal shapes."""
    result: T = gate._record(Swiglu(), up)
    return result


def rms_norm(xs: T, alpha: TensorBase, eps: float) -> T:
    """``x / sqrt(mean(x²) + eps) · alpha`` over the last dim."""
    result: T = xs._record(WeightedRMSNorm(eps), xs._lift(alpha))
    return result


def softcap(xs: T, cap: float) -> T:
    """cap · tanh(xs / cap) in one operation, as Gemma 2 caps its logits. candle spells it out.

    Raises ``ArgumentTypeError`` for a cap that is no number, ``ArgumentValueError`` for one that is not positive and
    finite.
    """
    if not isinstance(cap, Real):
        raise ArgumentTypeError(f"softcap: got cap {described(cap)}; takes a positive number")
    if not 0 < cap < math.inf:
        raise ArgumentValueError(f"softcap: got cap {cap}; takes a positive number")
    result: T = xs._record(Softcap(cap))
    return result


def dropout(xs: T, p: float) -> T:
    """Elements set to 0 with probability p, the others scaled by 1 / (1 - p)."""
    result: T = xs._wrap(record(Dropout(p), (xs._node, random_key(xs.device))))
    return result


def rope(xs: T, cos: TensorBase, sin: TensorBase) -> T:
    """Rotary embedding of ``(b, h, t, d)``, halves paired; cos and sin ``(t, d/2)``."""
    result: T = xs._record(Rope(), xs._lift(cos), xs._lift(sin))
    return result


def sdpa(
    q: T,
    k: T,
    v: T,
    mask: TensorBase | None = None,
    do_causal: bool = False,
    scale: float = 1.0,
    softcapping: float = 1.0,
) -> T:
    """softmax(scale · q · kᵀ + mask) · v for ``(b, h, s, d)``; k and v may have fewer heads.

    ``do_causal`` hides later keys, aligned bottom-right. A ``softcapping`` other than 1.0, which is off, replaces the
    scores by ``softcapping · tanh(scale · q · kᵀ / softcapping)`` before the mask. Raises ``ShapeMismatchError`` where
    both a mask and ``do_causal`` are given, ``ArgumentValueError`` for a ``softcapping`` that is not positive.
    """
    if mask is not None and do_causal:
        raise ShapeMismatchError("sdpa: got a mask and do_causal; takes one of them")
    if softcapping != 1.0:
        return capped_attention(q, k, v, mask, do_causal, scale, softcapping)
    masks = () if mask is None else (q._lift(mask),)
    result: T = q._record(Sdpa(scale, do_causal), k, v, *masks)
    return result

"""Attention whose scores are capped before the mask, as in Gemma 2: no fused kernel of MLX has the cap."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import mlx.core as mx

from ..dtype import DType
from ..error import ArgumentValueError
from ..graph.node import leaf, record
from ..graph.operations.counts import number
from ..graph.operations.fused import Sdpa
from ..graph.operations.masked_softmax import FilledSoftmax, MaskedSoftmax
from ..graph.operations.softcap import Softcap
from ..kernels.softmax import causal_mask
from ..tensor.base import TensorBase

T = TypeVar("T", bound=Any)


def capped_attention(q: T, k: T, v: T, mask: TensorBase | None, causal: bool, scale: float, cap: float) -> T:
    """softmax(cap · tanh(scale · q · kᵀ / cap) + mask) · v, shapes and masks as ``Sdpa``'s; all scores at once.

    Halves are computed in float32 and rounded once: a score near a cap of 50 is rounded by 0.1 in bfloat16, and its
    exponential by a tenth. Raises ``ArgumentTypeError`` for a cap that is no number, ``ArgumentValueError`` for one
    that is not positive and finite, else as ``Sdpa``.
    Gemma Team 2024, https://arxiv.org/abs/2408.00118.
    """
    cap = number("sdpa", "softcapping", cap, "a positive number, of which 1.0 is off")
    if not 0 < cap < math.inf:
        raise ArgumentValueError(f"sdpa: got {cap} for softcapping; takes a positive number, of which 1.0 is off")
    masks = [] if mask is None else [q._lift(mask)]
    Sdpa(scale, causal).infer(*(each._node.meta for each in (q, k, v, *masks)))
    dtype = q.dtype
    if dtype in (DType.F16, DType.BF16):
        q, k, v = (each.to_dtype(DType.F32) for each in (q, k, v))
        masks = [each.to_dtype(DType.F32) if each.dtype.is_float() else each for each in masks]
    (b, h, t, d), (_, kv, s, _) = q.shape, k.shape
    # Heads that share keys are rows of one product.
    rows = (b, kv, h // kv * t)
    scores = (q * scale).reshape((*rows, d)).matmul(k.transpose(2, 3)).reshape((b, h, t, s))
    weights = _weights(scores._record(Softcap(cap)), masks, causal)
    result: T = weights.reshape((*rows, s)).matmul(v).reshape((b, h, t, v.shape[3])).to_dtype(dtype)
    return result


def _weights(scores: T, masks: list[Any], causal: bool) -> T:
    result: T
    if masks and not masks[0].dtype.is_float():
        hidden = leaf(mx.array(-mx.inf, scores.dtype.mlx_), scores.device)
        nodes = (scores._node, masks[0]._node, hidden)
        result = scores._wrap(record(FilledSoftmax(1.0, False), nodes))
        return result
    *_, t, s = scores.shape
    # A single query is the last, and sees every key.
    if causal and t > 1:
        later = leaf(causal_mask(t, s, scores.dtype.mlx_), scores.device)
        result = scores._wrap(record(MaskedSoftmax(1.0), (scores._node, later)))
        return result
    result = scores._record(MaskedSoftmax(1.0), *masks)
    return result

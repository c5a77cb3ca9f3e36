"""Attention over sequences of different lengths, packed one behind the other. candle: ``candle_nn::varlen_attention``.

Neighbouring sequences of equal lengths are computed together, as a batch; no score is computed that belongs to two
sequences. The lengths have to be known, so that inside ``metal_candle.compile`` they are tensors from outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, TypeVar

import numpy as np

from ..dtype import DType
from ..error import (
    ArgumentTypeError,
    ArgumentValueError,
    DTypeMismatchError,
    ShapeMismatchBinaryOpError,
    ShapeMismatchError,
    UnsupportedDTypeForOpError,
)
from ..error.text import described
from ..shape import expect_rank
from ..tensor.arguments import expect_tensor
from ..tensor.base import TensorBase
from ..tensor.eager import Tensor
from ..tensor.lazy import LazyTensor
from . import ops
from .attention import alibi, constant, distances, visible, with_hidden

T = TypeVar("T", bound=Any)


def flash_attn_varlen_cpu(
    q: T,
    k: T,
    v: T,
    alibi_slopes: TensorBase | None,
    seqlens_q: TensorBase,
    seqlens_k: TensorBase,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_left: int | None = None,
    window_right: int | None = None,
) -> T:
    """Attention of each sequence by itself: q ``(total_q, h, d)``, k and v ``(total_k, kv, d)`` with h a multiple of
    kv, to ``(total_q, h, d)`` in q's dtype, on any device.

    ``seqlens_q`` and ``seqlens_k`` are the sequences' lengths, integers ``(b,)``, not their sums; ``max_seqlen_q`` and
    ``max_seqlen_k`` are there for candle's sake. The last query stands at the last key; one at key p sees the keys up
    to p if ``causal``, and with a window those from ``p - window_left`` to ``p + window_right``, or to p if there is
    only a ``window_left``. A query that sees no key gives zeros. ``alibi_slopes`` ``(h,)`` lower a score by slope times
    distance, and have a gradient (Press et al. 2021, https://arxiv.org/abs/2108.12409).

    Raises ``ShapeMismatchError`` for lengths that are not the tensors', and where ``causal`` queries are more than the
    keys; ``ArgumentValueError`` for a ``window_right`` alone or a negative window; kinds of ``TypeError`` and
    ``ShapeMismatchBinaryOpError`` for tensors that do not fit. candle: ``flash_attn_varlen_cpu``, which for the
    ``window_right`` alone gives zeros.
    """
    window, seqlens = (window_left, window_right), (seqlens_q, seqlens_k)
    return _attention("flash_attn_varlen_cpu", (q, k, v), alibi_slopes, seqlens, softmax_scale, causal, window)


def flash_attn_varlen_unfused(
    q: T,
    k: T,
    v: T,
    alibi_slopes: TensorBase | None,
    seqlens_q: TensorBase,
    seqlens_k: TensorBase,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> T:
    """As ``flash_attn_varlen_cpu``. candle: ``candle_nn::varlen_attention::flash_attn_varlen_unfused``, which leaves
    the queries of a sequence without keys out of its result, and gives NaN where a window hides all keys.
    """
    window, seqlens = (window_size_left, window_size_right), (seqlens_q, seqlens_k)
    return _attention("flash_attn_varlen_unfused", (q, k, v), alibi_slopes, seqlens, softmax_scale, causal, window)


def _attention(
    op: str,
    tensors: tuple[T, T, T],
    slopes: TensorBase | None,
    seqlens: tuple[TensorBase, TensorBase],
    scale: float,
    causal: bool,
    window: tuple[int | None, int | None],
) -> T:
    q, k, v = tensors
    _expect_fit(op, q, k, v)
    lengths_q, lengths_k = (_lengths(op, *pair) for pair in zip(("seqlens_q", "seqlens_k"), seqlens, (q, k)))
    if len(lengths_q) != len(lengths_k):
        raise ShapeMismatchError(f"{op}: got {len(lengths_q)} seqlens_q and {len(lengths_k)} seqlens_k; takes as many")
    for place, (queries, keys) in enumerate(zip(lengths_q, lengths_k)):
        if causal and keys < queries:
            takes = "no more queries than keys where it is causal"
            raise ShapeMismatchError(f"{op}: got {queries} queries and {keys} keys for sequence {place}; takes {takes}")
    _expect_window(op, *window)
    lifted = None
    if slopes is not None:
        if tuple(slopes.shape) != (q.shape[1],):
            raise ShapeMismatchBinaryOpError(op, q.shape, slopes.shape, f"a slope for each head, ({q.shape[1]},)")
        if not slopes.dtype.is_float_:
            raise UnsupportedDTypeForOpError(op, slopes.dtype, "alibi_slopes of floats")
        lifted = q._lift(slopes).to_dtype(DType.F64 if q.dtype is DType.F64 else DType.F32)
    parts = []
    for at_q, at_k, count, queries, keys in _runs(lengths_q, lengths_k):
        batch = [
            x.narrow(0, start, count * length).reshape((count, length, *x.shape[1:]))
            for x, start, length in ((q, at_q, queries), (k, at_k, keys), (v, at_k, keys))
        ]
        result = _batch(batch, lifted, scale, causal, *window)
        parts.append(result.reshape((count * queries, q.shape[1], v.shape[2])))
    joined: T = _joined(parts, 0) if parts else _zeros(q, (0, q.shape[1], v.shape[2]))
    return joined


def _batch(batch: list[T], slopes: T | None, scale: float, causal: bool, left: int | None, right: int | None) -> T:
    """Attention of sequences of one length, ``(n, queries, h, d)`` and ``(n, keys, kv, d)``."""
    q, k, v = batch
    n, queries, heads, _ = q.shape
    keys, offset = k.shape[1], k.shape[1] - q.shape[1]
    # The first queries see no key if they stand before the first one.
    blind = queries if not keys else 0
    if keys and left is not None:
        blind = min(queries, max(0, -offset - (0 if causal or right is None else right)))
    parts = [_zeros(q, (n, blind, heads, v.shape[3]))] if blind else []
    if blind < queries:
        rows, offset = queries - blind, offset + blind
        q = q.narrow(1, blind, rows) if blind else q
        added, aligned = None, causal and left is None and slopes is None
        if not aligned:
            seen = visible(rows, keys, offset, causal, left, right)
            if slopes is not None:
                bias = alibi(slopes, constant(q, distances(rows, keys, offset, causal)))
                # Added last: 0 · inf would be NaN for a slope of 0.
                added = with_hidden(bias, seen).to_dtype(q.dtype)
            elif seen is not None:
                added = constant(q, seen.astype(np.uint8))
        turned = [x.transpose(1, 2) for x in (q, k, v)]
        result = ops.sdpa(turned[0], turned[1], turned[2], added, aligned, scale)
        parts.append(result.transpose(1, 2))
    return _joined(parts, 1)


def _runs(lengths_q: list[int], lengths_k: list[int]) -> Iterator[tuple[int, int, int, int, int]]:
    """Neighbouring sequences of equal lengths that have queries: where they start, how many, their lengths."""
    at_q = at_k = 0
    for (queries, keys), run in groupby(zip(lengths_q, lengths_k)):
        count = len(list(run))
        if queries:
            yield at_q, at_k, count, queries, keys
        at_q, at_k = at_q + count * queries, at_k + count * keys


def _joined(parts: list[T], dim: int) -> T:
    kind = LazyTensor if isinstance(parts[0], LazyTensor) else Tensor
    result: Any = parts[0] if len(parts) == 1 else kind.cat(parts, dim)
    return result  # type: ignore[no-any-return]


def _zeros(like: T, shape: tuple[int, ...]) -> T:
    result: T = constant(like, np.zeros(shape, np.float32)).to_dtype(like.dtype)
    return result


def _expect_fit(op: str, q: TensorBase, k: TensorBase, v: TensorBase) -> None:
    for name, each in (("q", q), ("k", k), ("v", v)):
        expect_tensor(op, each, name)
        expect_rank(each.shape, 3, op)
        if each.dtype is not q.dtype:
            raise DTypeMismatchError(op, q.dtype, each.dtype)
    takes = "q (total_q, h, d), k and v (total_k, kv, d) with h a multiple of kv"
    if k.shape[2] != q.shape[2] or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ShapeMismatchBinaryOpError(op, q.shape, k.shape, takes)
    if tuple(v.shape[:2]) != tuple(k.shape[:2]):
        raise ShapeMismatchBinaryOpError(op, k.shape, v.shape, takes)


def _lengths(op: str, name: str, seqlens: TensorBase, packed: TensorBase) -> list[int]:
    if not isinstance(seqlens, TensorBase):
        raise ArgumentTypeError(f"{op}: got {name} {described(seqlens)}; takes a tensor of lengths")
    expect_rank(seqlens.shape, 1, f"{op}: {name}")
    if not seqlens.dtype.is_int():
        raise UnsupportedDTypeForOpError(op, seqlens.dtype, f"{name} of u32 or another integer dtype")
    lengths: list[int] = seqlens.numpy().tolist()
    if sum(lengths) != packed.shape[0] or min(lengths, default=0) < 0:
        takes = f"lengths whose sum is {packed.shape[0]}"
        raise ShapeMismatchError(f"{op}: got {name} {lengths} for {tuple(packed.shape)}; takes {takes}")
    return lengths


def _expect_window(op: str, left: int | None, right: int | None) -> None:
    if left is None and right is not None:
        raise ArgumentValueError(f"{op}: got a right window of {right} alone; takes a left one with it")
    for side, value in (("left", left), ("right", right)):
        if value is not None and (not isinstance(value, (int, np.integer)) or value < 0):
            raise ArgumentValueError(f"{op}: got a {side} window of {described(value)}; takes a count or None")

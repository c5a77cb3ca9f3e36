"""Prompts, read piece by piece: how much at once bounds the memory of attention's scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..device import Device
from ..dtype import DType
from ..graph.evaluate import evaluate, on_device
from ..models.decoder import Decoder
from ..models.layout import Rows
from ..nn.kv_cache import ConcatKvCache, Span
from ..tensor.base import nodes_of
from ..tensor.eager import Tensor
from ..tensor.lazy import LazyTensor

JOIN = 64
"""Places by which rows begin together: up to so many are computed in vain to save a piece, which costs as much as some
30 tokens of a row on two x86-64 cores."""

Past = list[tuple[mx.array, mx.array]]


class PieceCache(ConcatKvCache):
    """A layer's keys and values ``(b, kv, t, d)`` between two pieces of a prompt."""

    def __init__(self, span: Span, past: tuple[mx.array, mx.array] | None, device: Device) -> None:
        super().__init__(2)
        self._span, self._device = span, device
        if past is not None:
            self._k, self._v = (Tensor.from_mlx(array, device) for array in past)

    def settle(self, count: int) -> None:
        """Keep what a later position sees of the ``count`` so far, which are evaluated."""
        surplus = self.current_seq_len() - len(self._span.held(count))
        if surplus > 0:
            keep = self._span.keep
            with on_device(self._device):
                parts = [[array[:, :, :keep], array[:, :, keep + surplus :]] for array in self.arrays()]
                kept = [mx.concatenate(part, axis=2) for part in parts]
                mx.eval(kept)  # a part of the whole would keep the whole
            self._k, self._v = (Tensor.from_mlx(array, self._device) for array in kept)

    def widen(self, rows: int) -> None:
        """Add rows of zeros, which nobody looks at, up to so many."""
        if self._k is not None and self._k.dim(0) < rows:
            more = rows - self._k.dim(0)
            self._k, self._v = (tensor.pad_with_zeros(0, 0, more) for tensor in (self._k, self._v))

    def arrays(self) -> tuple[mx.array, mx.array]:
        """Keys and values."""
        return self._k.mlx(), self._v.mlx()


def pieces(left: Sequence[int], begin: int, total: int, chunk: int) -> Iterator[tuple[int, int]]:
    """The places that are computed together, first and end, where row i begins at place ``left[i]``.

    Each of them has the rows that have begun by its end.
    """
    begins = sorted({place // JOIN * JOIN for place in left} - {0})
    while begin < total:
        end = min(begin + chunk, total, *[place for place in begins if place > begin])
        yield begin, end
        begin = end


def prefill(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    spans: Callable[[int | None], Span],
    chunk: int,
    past: Past | None = None,
    begin: int = 0,
    before: Callable[[int], None] = lambda done: None,
    select: Callable[[int], object] = lambda rows: None,
) -> tuple[Any, Past]:
    """The logits ``(rows, vocabulary)`` after some prompts, the longest first, and each layer's keys and values.

    Rows end together; keys and values are of the places that ``spans`` lets later ones see. Only the last position
    meets the vocabulary head. ``past`` holds those of the first ``begin`` places. ``before`` is called before each
    piece with the number of places that are done; it may raise. ``select`` is told how many rows a piece has.
    Raises ``InvalidIndexError`` for an id that is no token.
    """
    total = len(prompts[0])
    left = [total - len(prompt) for prompt in prompts]
    layers = range(model.num_layers())
    caches = [
        PieceCache(spans(model.config.window(layer)), past[layer] if past else None, model.device) for layer in layers
    ]
    for first, end in pieces(left, begin, total, chunk):
        before(first)
        begun = [i for i, place in enumerate(left) if place < end]
        ids = np.zeros((len(begun), end - first), np.uint32)
        for i in begun:
            own = max(first, left[i])
            ids[i, own - first :] = prompts[i][own - left[i] : end - left[i]]
        for cache in caches:
            cache.widen(len(begun))
        select(len(begun))
        xs = LazyTensor(Tensor.new(ids, model.device, DType.U32)._node)
        layout = Rows(model.rotary, xs, first, [left[i] for i in begun], spans)
        hidden = model.hidden(xs, list(caches), layout)
        if end < total:
            evaluate(nodes_of(_kept(caches)))
            for cache in caches:
                cache.settle(end)
    before(total)
    logits = model.lm_head(hidden.narrow(1, hidden.dim(1) - 1, 1))
    evaluate(nodes_of([logits, *_kept(caches)]))
    for cache in caches:
        cache.settle(total)
    return logits.mlx(), [cache.arrays() for cache in caches]


def _kept(caches: Sequence[PieceCache]) -> list[Any]:
    return [tensor for cache in caches for tensor in (cache.k(), cache.v())]

"""From token ids to the logits of the next token, keeping the keys and values of those before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ..dtype import DType
from ..graph.evaluate import evaluate, on_device
from ..graph.node import placeholder
from ..graph.operation import Meta, to_numpy
from ..graph.replay import Replay
from ..models.decoder import Decoder
from ..models.layout import AtTables
from ..nn.kv_cache import KvBuffer, RecordedCache
from ..shape import Shape
from ..tensor.base import nodes_of
from ..tensor.eager import Tensor
from ..tensor.lazy import LazyTensor
from .host import HostPlan
from .mlx_lm_step import OwnCachesStep

PREFILL_TOKENS = 512
"""How much of a prompt is computed at once: the scores of attention take memory with its square."""

Logits = np.ndarray[Any, Any]


class Step(Protocol):
    """What a generator needs of a model: one sequence, read piece by piece."""

    def feed(self, ids: Sequence[int]) -> Logits:
        """The logits ``(vocabulary,)`` after these ids, which follow those of earlier calls."""


def prefill(model: Decoder, ids: Sequence[int]) -> tuple[Logits, list[tuple[mx.array, mx.array]]]:
    """The logits after a prompt, and each layer's keys and values ``(1, kv, t, head_dim)``.

    Only the last position meets the vocabulary head. Raises ``InvalidIndexError`` for an id that is no token.
    """
    caches = model.new_caches()
    for first in range(0, len(ids), PREFILL_TOKENS):
        piece = list(ids[first : first + PREFILL_TOKENS])
        hidden = model.hidden(LazyTensor(Tensor.new([piece], model.device, DType.U32)._node), caches)
        kept = [tensor for cache in caches for tensor in (cache.k(), cache.v())]
        if first + PREFILL_TOKENS < len(ids):
            evaluate(nodes_of(kept))
    logits = model.lm_head(hidden.narrow(1, len(piece) - 1, 1))
    evaluate(nodes_of([logits, *kept]))
    return _row(logits.mlx()), [(cache.k().mlx(), cache.v().mlx()) for cache in caches]


class CachedStep:
    """A decoder's step: the prompt in one evaluation, then one token at a time from a recorded plan.

    The step is recorded once per prompt, with what the model and its adapters are then, and replayed for each
    token: by NumPy where ``HostPlan.takes`` it, else by MLX.
    """

    def __init__(self, model: Decoder) -> None:
        self._model, self._position = model, 0
        self._plan: HostPlan | Replay | None = None

    def feed(self, ids: Sequence[int]) -> Logits:
        """The logits after a prompt at the first call, then after one more token."""
        if self._plan is None:
            logits, past = prefill(self._model, ids)
            self._plan = _record(self._model, past)
            self._position = len(ids)
            return logits
        (token,) = ids
        rows = self._model.rotary.rows(self._position, 1)
        self._position += 1
        if isinstance(self._plan, HostPlan):
            return np.asarray(self._plan.run([np.array([[token]]), *rows]).reshape(-1))
        with on_device(self._model.device):
            tables = [mx.array(row).astype(self._model.dtype.mlx_) for row in rows]
            (logits,) = self._plan.run([mx.array([[token]], mx.uint32), *tables])
            mx.eval(logits)
        return _row(logits)


class FullStep:
    """The step of a model that keeps nothing: the whole sequence is computed again for each token."""

    def __init__(self, model: Any) -> None:
        self._model, self._ids = model, list[int]()

    def feed(self, ids: Sequence[int]) -> Logits:
        """The logits after all ids so far."""
        self._ids += ids
        device = getattr(self._model, "device", None)
        logits = self._model.forward(Tensor.new([self._ids], device, DType.U32))
        return _row(logits.narrow(1, len(self._ids) - 1, 1).mlx())


def step_of(model: Any) -> Step:
    """A fresh step of a ``Decoder``, of what keeps caches of its own, or of what makes logits ``(1, t, v)`` of ids."""
    if isinstance(model, Decoder):
        return CachedStep(model)
    return OwnCachesStep(model) if hasattr(model, "next_logits") else FullStep(model)


def _row(logits: mx.array) -> Logits:
    return to_numpy(logits).reshape(-1)


def _record(model: Decoder, past: list[tuple[mx.array, mx.array]]) -> HostPlan | Replay:
    """The plan of a step for one token: its inputs are the id ``(1, 1)`` and the two rows of rotary tables."""

    def argument(size: int, dtype: DType) -> LazyTensor:
        return LazyTensor(placeholder(Meta(Shape((1, size)), dtype), model.device))

    windows = [model.config.window(layer) for layer in range(model.num_layers())]
    buffers = [(KvBuffer(window), KvBuffer(window)) for window in windows]
    half = model.config.head_dim() // 2
    ids, cos, sin = argument(1, DType.U32), argument(half, model.dtype), argument(half, model.dtype)
    output = model.forward(ids, [RecordedCache(*pair) for pair in buffers], AtTables(cos, sin))._node
    inputs = [ids._node, cos._node, sin._node]
    host = HostPlan.takes(output)
    for pair, arrays in zip(buffers, past):
        for buffer, array in zip(pair, arrays):
            buffer.start(*((np, np.array(array)) if host else (mx, array)))
    return HostPlan(output, inputs) if host else Replay([output], inputs)

"""The step of a model that keeps mlx-lm's own caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ..device import Device
from ..graph.operation import to_numpy
from .config import PREFILL_TOKENS


class CachedModel(Protocol):
    """What the step needs of a model; ``metal_candle.models.mlx_lm.MlxLmModel`` has it."""

    device: Device

    def new_caches(self) -> list[Any]:
        """Empty caches for one sequence."""

    def next_logits(self, ids: Sequence[int], caches: list[Any], last: bool = True) -> mx.array | None:
        """The logits ``(vocabulary,)`` after ids that follow those in the caches; without ``last`` only the caches."""

    def begin_logits(self, ids: mx.array, caches: list[Any]) -> mx.array:
        """``next_logits`` of ids ``(1, t)``, not evaluated."""


class OwnCachesStep:
    """A step whose caches are of the kinds that the model's architecture has: growing, rotating, states of a scan."""

    def __init__(self, model: CachedModel, chunk: int = PREFILL_TOKENS) -> None:
        self._model, self._caches, self._chunk = model, model.new_caches(), chunk

    def feed(self, ids: Sequence[int], before: Callable[[int], None] = lambda done: None) -> np.ndarray[Any, Any]:
        """The logits ``(vocabulary,)`` after these ids, which follow those of earlier calls.

        ``before`` is called before each piece with the number of ids that are done; it may raise.
        """
        last = (len(ids) - 1) // self._chunk * self._chunk
        for first in range(0, last, self._chunk):
            before(first)
            self._model.next_logits(ids[first : first + self._chunk], self._caches, last=False)
        before(last)
        logits = self._model.next_logits(ids[last:], self._caches)
        before(len(ids))
        assert logits is not None
        return to_numpy(logits)

    def can_follow(self) -> bool:
        """Whether the model is on a GPU."""
        return not self._model.device.is_cpu()

    def follow(self, token: mx.array) -> mx.array:
        """The logits ``(vocabulary,)`` after one more token, uint32 ``()``; neither is evaluated."""
        return self._model.begin_logits(token.reshape(1, 1), self._caches)

    def keep(self, token: int) -> None:
        """Nothing: the caches count for themselves."""

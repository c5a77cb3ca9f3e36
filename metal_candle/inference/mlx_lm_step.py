"""The step of a model that keeps mlx-lm's own caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ..graph.operation import to_numpy

PREFILL_TOKENS = 512
"""How much of a prompt is computed at once, as for our own decoder."""


class CachedModel(Protocol):
    """What the step needs of a model; ``metal_candle.models.mlx_lm.MlxLmModel`` has it."""

    def new_caches(self) -> list[Any]:
        """Empty caches for one sequence."""

    def next_logits(self, ids: Sequence[int], caches: list[Any], last: bool = True) -> mx.array | None:
        """The logits ``(vocabulary,)`` after ids that follow those in the caches; without ``last`` only the caches."""


class OwnCachesStep:
    """A step whose caches are of the kinds that the model's architecture has: growing, rotating, states of a scan."""

    def __init__(self, model: CachedModel) -> None:
        self._model, self._caches = model, model.new_caches()

    def feed(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """The logits ``(vocabulary,)`` after these ids, which follow those of earlier calls."""
        last = (len(ids) - 1) // PREFILL_TOKENS * PREFILL_TOKENS
        for first in range(0, last, PREFILL_TOKENS):
            self._model.next_logits(ids[first : first + PREFILL_TOKENS], self._caches, last=False)
        logits = self._model.next_logits(ids[last:], self._caches)
        assert logits is not None
        return to_numpy(logits)

"""What was read of a conversation, kept for its next turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..models.decoder import Decoder
from .config import GeneratorConfig
from .step import Before, CachedStep, Logits


class PromptCache:
    """Keys and values of what one stream has read, for the next that begins alike: a conversation's next turn.

    Only what follows the common beginning is computed then. What the model or its adapters have changed since is not
    taken over, nor what a rotating cache has let go of. One stream uses it at a time: another begins from nothing.
    """

    def __init__(self) -> None:
        self._step: CachedStep | None = None
        self._made_for: tuple[Any, ...] = ()
        self.reused = 0
        """How many tokens of the last prompt were not computed again."""

    def __repr__(self) -> str:
        return f"PromptCache({len(self)} tokens, reused={self.reused})"

    def __len__(self) -> int:
        return 0 if self._step is None else len(self._step)

    def clear(self) -> None:
        """Forget everything."""
        self._step, self.reused = None, 0

    def begin(
        self, model: Decoder, config: GeneratorConfig, ids: Sequence[int], before: Before
    ) -> tuple[CachedStep, Logits]:
        """A step that has read ``ids``, which the cache lets go of, and the logits after them."""
        step, self._step, self.reused = self._step, None, 0
        kind = (model, config.cache, config.max_kv_size, config.keep)
        if step is None or any(a is not b and a != b for a, b in zip(kind, self._made_for)):
            step = CachedStep(model, config)
        self._made_for = kind
        logits, self.reused = step.resume(ids, before)
        return step, logits

    def end(self, step: CachedStep) -> None:
        """Take the step back, between two of its tokens."""
        self._step = step

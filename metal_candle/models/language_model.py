"""``LanguageModel``: what generates text. metal-candle: ``metal_candle::models::LanguageModel``."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from ..device import Device


@runtime_checkable
class LanguageModel(Protocol):
    """Anything that makes logits of token ids: ``Qwen``, or a class of one's own. ``Generator`` takes it."""

    device: Device

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """The logits ``(b, t, v)`` of ids ``(b, t)``.

        Each position sees itself and those before it; with ``attention_mask``, which is added to the scores
        ``(b, heads, t, t)``, those that it leaves.
        """

    def vocab_size(self) -> int:
        """How many tokens there are."""

"""What ends a generated text besides its length: end tokens found by content, and texts."""

from __future__ import annotations

from collections.abc import Iterable

from ..error import ModelError
from ..models.tokenizer import Tokenizer

_SAID = "metal candle"


def end_tokens(tokenizer: Tokenizer, model: Iterable[int] = ()) -> frozenset[int]:
    """All that end an answer: those of the model's configuration, of the tokenizer and of its chat template."""
    turn = end_of_turn(tokenizer)
    return frozenset(model) | tokenizer.eos_token_ids | frozenset(() if turn is None else [turn])


def end_of_turn(tokenizer: Tokenizer) -> int | None:
    """The special token that the chat template writes behind an assistant's message, or ``None``.

    Models tuned for chat by others end their turns with it, whatever their configuration names as the end of a text.
    """
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": _SAID}, {"role": "assistant", "content": _SAID}]
    try:
        text = tokenizer.apply_chat_template(turns)
    except ModelError.ChatTemplateFailed:
        return None  # it takes other roles or further variables; who chats with it hears so
    before, said, after = text.rpartition(_SAID)
    if not said or _SAID not in before:
        return None
    ids = tokenizer.encode(after.strip())
    if not ids:
        return None
    is_special = tokenizer.decode(ids[:1], skip_special_tokens=True) == ""
    return ids[0] if is_special and after.strip().startswith(tokenizer.decode(ids[:1])) else None


class TextStops:
    """Lets text through up to the first of some texts; what may be the beginning of one is held back."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.reached = False

    def step(self, piece: str) -> str:
        """What is certain to stand before any of the texts."""
        if self.reached or not self._stops:
            return "" if self.reached else piece
        text, self._held = self._held + piece, ""
        found = [place for place in map(text.find, self._stops) if place >= 0]
        if found:
            self.reached = True
            return text[: min(found)]
        held = max(self._overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, where the text ends without any of them."""
        rest, self._held = self._held, ""
        return rest

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """How much of the end of ``text`` is the beginning of ``stop``."""
        return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)

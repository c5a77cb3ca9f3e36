"""Text generation as text: prompts or chat messages in, pieces of text out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Union

from ..error import InferenceError
from ..models.load import LoadedModel
from .generator import Generator, GeneratorConfig
from .sampling import StreamToken

Prompt = Union[str, Sequence[Mapping[str, Any]]]


class TextGenerator:
    """A model with its tokenizer, generating text.

    Stops at the end tokens of the model's configuration and of its tokenizer. Raises as ``Generator``.
    """

    def __init__(self, loaded: LoadedModel, config: GeneratorConfig | None = None) -> None:
        self._tokenizer = loaded.tokenizer
        self._generator = Generator(loaded.model, config, eos_token_ids=loaded.tokenizer.eos_token_ids)

    def config(self) -> GeneratorConfig:
        """The configuration."""
        return self._generator.config()

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of a text, with the model's own beginning, or of messages in the model's chat format.

        Raises ``ModelError.ChatTemplateFailed`` where the model has none or it refuses the messages, and
        ``InferenceError.InvalidConfig`` for an empty prompt.
        """
        if isinstance(prompt, str):
            ids = self._tokenizer.encode(prompt, add_special_tokens=True)
        else:
            # The template writes the special tokens out.
            text = self._tokenizer.apply_chat_template(prompt, add_generation_prompt=True)
            ids = self._tokenizer.encode(text)
        if not ids:
            raise InferenceError.InvalidConfig(reason="the prompt is empty; takes at least one token to go on from")
        return ids

    def stream_tokens(self, prompt: Prompt) -> Iterator[StreamToken]:
        """The tokens of the answer; ``text`` is what each completes: empty within a character or for a special one."""
        decoder = self._tokenizer.decode_stream()
        for token in self._generator.stream(self.encode(prompt)):
            yield replace(token, text=decoder.step(token.token_id))

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """The answer to a prompt or to messages, in pieces of whole characters. Special tokens are left out."""
        decoder = self._tokenizer.decode_stream()
        for token in self._generator.stream(self.encode(prompt)):
            if piece := decoder.step(token.token_id):
                yield piece
        if rest := decoder.finish():
            yield rest

    def generate(self, prompt: Prompt) -> str:
        """The whole answer."""
        return "".join(self.stream(prompt))

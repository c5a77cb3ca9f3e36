"""Text generation as text: prompts or chat messages in, pieces of text out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Union

from ..error import InferenceError
from ..error.expect import a, expect, listed
from ..models.loaded import LoadedModel
from .batch import Adapters, BatchGenerator, expect_adapters
from .config import GeneratorConfig, config_of
from .generator import Generator
from .sampling import StreamToken
from .stop import TextStops, end_tokens
from .streams import Cancellation, in_thread

Prompt = Union[str, Sequence[Mapping[str, Any]]]


class TextGenerator:
    """A model with its tokenizer, generating text.

    Stops at the end tokens of the model's configuration, of its tokenizer and of its chat template, and at the texts
    of ``GeneratorConfig.stop``. ``adapters`` are those that ``generate_batch`` finds by name. Raises as ``Generator``.
    """

    def __init__(
        self, loaded: LoadedModel, config: GeneratorConfig | None = None, adapters: Adapters | None = None
    ) -> None:
        expect("TextGenerator", loaded, a(LoadedModel, "a LoadedModel, which load_model gives"))
        expect_adapters("TextGenerator", adapters)
        self._tokenizer, self._config = loaded.tokenizer, config_of("TextGenerator", config)
        self._model, self._adapters = loaded.model, adapters
        self._of_ids, self._ends = replace(self._config, stop=()), end_tokens(loaded.tokenizer)
        self._generator = Generator(loaded.model, self._of_ids, eos_token_ids=self._ends)

    def config(self) -> GeneratorConfig:
        """The configuration."""
        return self._config

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of a text, with the model's own beginning, or of messages in the model's chat format.

        Raises ``ModelError.ChatTemplateFailed`` where the model has none or it refuses the messages, and
        ``InferenceError.InvalidConfig`` for an empty prompt.
        """
        return self._encode(prompt)

    def _encode(self, prompt: Prompt, place: str = "") -> list[int]:
        if isinstance(prompt, str):
            ids = self._tokenizer.encode(prompt, add_special_tokens=True)
        else:
            messages = listed("TextGenerator", prompt, "a text or a list of messages", "prompt")
            if not messages:  # of which a template makes something all the same
                raise InferenceError.InvalidConfig(reason=f"{place}the prompt has no messages; takes at least one")
            # The template writes the special tokens out.
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            ids = self._tokenizer.encode(text)
        if not ids:
            reason = f"{place}the prompt is empty; takes at least one token to go on from"
            raise InferenceError.InvalidConfig(reason=reason)
        return ids

    def stream_tokens(self, prompt: Prompt, **options: Any) -> Iterator[StreamToken]:
        """The tokens of the answer; ``text`` is what each completes: empty within a character or for a special one,
        and within what may become one of the texts that end it. The last one has what is left; together they are the
        answer. Options and errors as ``Generator.stream``.
        """
        answer, config = _Answer(self._tokenizer, self._config), self._config
        for count, token in enumerate(self._generator.stream(self.encode(prompt), **options), 1):
            text = answer.step(token.token_id)
            ends = token.token_id in config.stop_tokens or (token.is_eos and config.stop_on_eos)
            if ends or count == config.max_tokens:
                text += answer.finish()
            yield replace(token, text=text)
            if answer.stopped:
                return

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """The answer to a prompt or to messages, in pieces of whole characters. Special tokens are left out.

        Options and errors as ``Generator.stream``.
        """
        answer = _Answer(self._tokenizer, self._config)
        for token in self._generator.stream(self.encode(prompt), **options):
            if piece := answer.step(token.token_id):
                yield piece
            if answer.stopped:
                return
        if rest := answer.finish():
            yield rest

    def stream_async(
        self, prompt: Prompt, *, cancel: Cancellation | None = None, **options: Any
    ) -> AsyncGenerator[str, None]:
        """``stream`` as an async iterator, which is left as ``Generator.generate_stream_async``."""
        return in_thread(lambda own: self.stream(prompt, cancel=own, **options), cancel)

    def generate(self, prompt: Prompt, **options: Any) -> str:
        """The whole answer."""
        return "".join(self.stream(prompt, **options))

    def generate_batch(
        self, prompts: Sequence[Prompt], adapters: Sequence[str | None] | None = None, **options: Any
    ) -> list[str]:
        """The answer to each prompt, all at once; ``adapters`` names one for each, or ``None`` for the base.

        A row is computed until its end token or ``max_tokens``, and cut at the texts of ``stop``. Options and errors
        as ``BatchGenerator.stream``.
        """
        batch = BatchGenerator(self._model, self._of_ids, self._adapters, self._ends)
        given = listed("generate_batch", prompts, "a list of prompts", "prompts")
        ids = [self._encode(prompt, f"prompts[{i}]: ") for i, prompt in enumerate(given)]
        found = []
        for prompt, whole in zip(ids, batch.generate(ids, adapters, **options)):
            answer = _Answer(self._tokenizer, self._config)
            found.append("".join([*map(answer.step, whole[len(prompt) :]), answer.finish()]))
        return found


class _Answer:
    """Ids that become text, up to the texts that end it."""

    def __init__(self, tokenizer: Any, config: GeneratorConfig) -> None:
        self._decoder, self._stops = tokenizer.decode_stream(), TextStops(config.stop)

    @property
    def stopped(self) -> bool:
        return self._stops.reached

    def step(self, token_id: int) -> str:
        return self._stops.step(self._decoder.step(token_id))

    def finish(self) -> str:
        rest = self._stops.step(self._decoder.finish())
        return rest + self._stops.finish()

"""Text generation, token by token, as ids. metal-candle: ``metal_candle::inference::Generator``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..error import InferenceError, InvalidIndexError
from ..models.decoder import Decoder
from .sampling import (
    Filters,
    SamplingStrategy,
    StreamToken,
    check_penalty,
    check_seed,
    checked,
    described,
    penalized,
    random_generator,
)
from .step import step_of


@dataclass(frozen=True)
class GeneratorConfig:
    """How much is generated and how tokens are chosen.

    ``temperature``, ``top_k`` and ``top_p`` filter what ``sampling`` leaves; under ``Greedy`` the largest logit
    wins whatever they are. ``eos_token_id`` replaces the model's own end tokens; ``stop_tokens`` end the text
    too. The token that ends it is part of the result. ``seed`` makes draws repeatable.
    """

    max_tokens: int = 100
    sampling: SamplingStrategy = SamplingStrategy.Greedy
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float = 1.0
    stop_on_eos: bool = True
    eos_token_id: int | None = None
    stop_tokens: Sequence[int] = field(default_factory=list)
    seed: int | None = None

    def filters(self) -> Filters:
        """What logits go through. Raises ``InferenceError.InvalidSampling``."""
        own = Filters(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        return self.sampling.filters().and_also(own)

    def validate(self) -> None:
        """Raise ``InferenceError.InvalidConfig`` or ``InvalidSampling`` for a value outside its range."""
        if type(self.max_tokens) is not int or self.max_tokens < 0:
            raise InferenceError.InvalidConfig(reason=f"max_tokens is {self.max_tokens!r}; takes an integer from 0")
        self.filters()
        check_penalty(self.repetition_penalty)
        check_seed(self.seed)


class Generator:
    """Continues token ids with a model.

    The model is a ``Decoder``, or anything whose ``forward`` makes logits ``(1, t, vocabulary)`` of ids
    ``(1, t)``, which is then run on the whole sequence for each token. ``eos_token_ids`` adds the tokenizer's end
    tokens to those of the model's configuration. Raises as ``GeneratorConfig.validate``.
    """

    def __init__(self, model: Any, config: GeneratorConfig | None = None, eos_token_ids: Iterable[int] = ()) -> None:
        self._model, self._config = model, config or GeneratorConfig()
        self._config.validate()
        if isinstance(model, Decoder):
            # Arrays still to be read from a file belong to the stream of this thread: another could not read them.
            mx.eval([weight.mlx() for weight in model.weights().values()])
        own = getattr(model, "config", None)
        self._max_len: int | None = getattr(own, "max_position_embeddings", None)
        if self._config.eos_token_id is not None:
            self._eos = frozenset([self._config.eos_token_id])
        else:
            self._eos = frozenset(eos_token_ids) | (own.eos_token_ids() if own is not None else frozenset())

    def config(self) -> GeneratorConfig:
        """The configuration."""
        return self._config

    def stream(self, input_ids: Sequence[int]) -> Iterator[StreamToken]:
        """The tokens that follow a prompt, each as soon as it is known; none for an empty prompt.

        Raises ``InferenceError.CacheFull`` when the model's context is full, ``InferenceError.SamplingError`` for
        logits that are NaN, and ``InvalidIndexError`` for an id that is no token.
        """
        config = self._config
        ids = [int(i) for i in input_ids]
        if not ids:
            return
        size = self._model.vocab_size() if hasattr(self._model, "vocab_size") else None
        for i in ids:
            if i < 0 or (size is not None and i >= size):
                raise InvalidIndexError("generate", i, size or 2**32)
        filters, rng, step = config.filters(), random_generator(config.seed), step_of(self._model)
        stops = frozenset(config.stop_tokens) | (self._eos if config.stop_on_eos else frozenset())
        new = ids
        if self._max_len is not None and len(ids) > self._max_len:
            raise InferenceError.InvalidConfig(
                reason=f"the prompt has {len(ids)} tokens, the model's context is {self._max_len}; shorten it"
            )
        for _ in range(config.max_tokens):
            if self._max_len is not None and len(ids) > self._max_len:
                raise InferenceError.CacheFull(position=len(ids), max_len=self._max_len)
            logits = checked(penalized(step.feed(new), ids, config.repetition_penalty))
            token = filters.draw(logits, rng)
            ids.append(token)
            new = [token]
            yield described(token, logits, is_eos=token in self._eos)
            if token in stops:
                return

    def generate(self, input_ids: Sequence[int]) -> list[int]:
        """The prompt's ids and those that follow. Raises as ``stream``."""
        return [*input_ids, *(token.token_id for token in self.stream(input_ids))]

    def generate_stream(self, input_ids: Sequence[int], callback: Callable[[StreamToken], bool | None]) -> list[int]:
        """As ``generate``; ``callback`` sees each token and stops by returning ``False``."""
        ids = list(input_ids)
        for token in self.stream(input_ids):
            ids.append(token.token_id)
            if callback(token) is False:
                break
        return ids

    async def generate_stream_async(self, input_ids: Sequence[int]) -> AsyncIterator[StreamToken]:
        """The tokens as an async iterator; the event loop runs on while each is computed in a thread.

        Leaving the iterator early stops the generation.
        """
        tokens = self.stream(input_ids)
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="metal-candle-generate") as thread:
            while (token := await loop.run_in_executor(thread, next, tokens, None)) is not None:
                yield token

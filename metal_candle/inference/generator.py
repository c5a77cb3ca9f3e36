"""Text generation, token by token, as ids. metal-candle: ``metal_candle::inference::Generator``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from operator import index
from typing import Any

import mlx.core as mx

from ..constructors import New
from ..device import Device
from ..error import ArgumentTypeError, InferenceError, InvalidIndexError
from ..error.expect import a, expect, integer, listed, optional
from ..error.text import described as shown
from ..models.decoder import Decoder
from .choosing import Choosing, choosing_of
from .computing import computing
from .config import GeneratorConfig, config_of
from .prompt_cache import PromptCache
from .sampling import StreamToken
from .step import CachedStep, Step, step_of
from .streams import Cancellation, Stopped, expect_watchers, in_thread

Progress = Callable[[int, int], None]


class Generator(New):
    """Continues token ids with a model.

    The model is a ``Decoder``, or anything whose ``forward`` makes logits ``(1, t, vocabulary)`` of ids
    ``(1, t)``, which is then run on the whole sequence for each token. ``eos_token_ids`` adds the tokenizer's end
    tokens to those of the model's configuration. Raises as ``GeneratorConfig.validate``, and for ``stop``, which
    takes the text of a ``TextGenerator``.
    """

    def __init__(self, model: Any, config: GeneratorConfig | None = None, eos_token_ids: Iterable[int] = ()) -> None:
        if not any(callable(getattr(model, name, None)) for name in ("forward", "next_logits")):
            raise ArgumentTypeError(f"Generator: got {shown(model)}; takes a model, whose forward makes logits of ids")
        self._model, self._config = model, config_of("Generator", config)
        expect_no_texts(self._config)
        evaluate_weights(model)
        ends = [
            integer("Generator", "an end token", i)
            for i in listed("Generator", eos_token_ids, "token ids", "eos_token_ids")
        ]
        self._eos = end_tokens_of(model, self._config, ends)
        self._context: int | None = getattr(getattr(model, "config", None), "max_position_embeddings", None)

    def config(self) -> GeneratorConfig:
        """The configuration."""
        return self._config

    def stream(
        self,
        input_ids: Sequence[int],
        *,
        cancel: Cancellation | None = None,
        progress: Progress | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> Iterator[StreamToken]:
        """The tokens that follow a prompt, each as soon as it is known; none for an empty prompt.

        ``cancel`` ends it from outside. ``progress(done, total)`` counts the prompt's tokens as they are read.
        ``prompt_cache`` keeps what was read for the next stream that begins alike.

        Raises ``InferenceError.CacheFull`` when the model's context or a fixed cache is full,
        ``InferenceError.SamplingError`` for logits that are NaN, and ``InvalidIndexError`` for an id that is no token.
        """
        config = self._config
        expect_watchers("Generator", cancel, progress)
        expect("Generator", prompt_cache, optional(a(PromptCache)), "prompt_cache")
        ids = checked_prompt(self._model, input_ids)
        if not ids:
            return
        limit = config.limit(self._context)
        expect_room(len(ids), limit, self._context)
        stops = frozenset(config.stop_tokens) | (self._eos if config.stop_on_eos else frozenset())
        before = watched(len(ids), cancel, progress)
        step: Step | None = None
        choosing: Choosing | None = None
        try:
            for count in range(config.max_tokens):
                if count and cancel is not None and cancel.is_cancelled():
                    return
                if limit is not None and len(ids) > limit:
                    raise InferenceError.CacheFull(position=len(ids), max_len=limit)
                more = count + 1 < config.max_tokens and (limit is None or len(ids) < limit)
                running, step = step, None
                with computing(self._model):
                    if choosing is None:
                        running, choosing = self._begin(ids, before, prompt_cache)
                    token, logit, probability = choosing.next(ids, more)
                step = running
                ids.append(token)
                yield StreamToken(token, None, logit, probability, is_eos=token in self._eos)
                if token in stops:
                    return
        except Stopped:
            return
        finally:
            # A step that was interrupted half-way is not handed on.
            if prompt_cache is not None and isinstance(step, CachedStep):
                prompt_cache.end(step)

    def _begin(self, ids: Sequence[int], before: Any, prompt_cache: PromptCache | None) -> tuple[Step, Choosing]:
        step: Step
        if prompt_cache is None:
            step = step_of(self._model, self._config)
            logits = step.feed(ids, before)
        elif isinstance(self._model, Decoder):
            step, logits = prompt_cache.begin(self._model, self._config, ids, before)
        else:
            raise InferenceError.InvalidConfig(
                reason=f"prompt_cache: the model is a {type(self._model).__name__}; takes a Decoder"
            )
        return step, choosing_of(step, logits, self._config, ids, getattr(self._model, "device", Device.Cpu))

    def generate(self, input_ids: Sequence[int], **options: Any) -> list[int]:
        """The prompt's ids and those that follow. Options and errors as ``stream``."""
        ids = checked_prompt(self._model, input_ids)
        return [*ids, *(token.token_id for token in self.stream(ids, **options))]

    def generate_stream(
        self, input_ids: Sequence[int], callback: Callable[[StreamToken], bool | None], **options: Any
    ) -> list[int]:
        """As ``generate``; ``callback`` sees each token and stops by returning ``False``."""
        ids = checked_prompt(self._model, input_ids)
        for token in self.stream(list(ids), **options):
            ids.append(token.token_id)
            if callback(token) is False:
                break
        return ids

    def generate_stream_async(
        self, input_ids: Sequence[int], *, cancel: Cancellation | None = None, **options: Any
    ) -> AsyncGenerator[StreamToken, None]:
        """The tokens as an async iterator; the event loop runs on while each is computed in a thread.

        Leaving the iterator early, or cancelling the task that waits for it, stops the generation at the next token
        or piece of the prompt. Options and errors as ``stream``.
        """
        return in_thread(lambda own: self.stream(input_ids, cancel=own, **options), cancel)


def expect_no_texts(config: GeneratorConfig) -> None:
    """Raise ``InferenceError.InvalidConfig`` for texts to stop at, where there is no text."""
    if config.stop:
        raise InferenceError.InvalidConfig(
            reason=f"stop is {list(config.stop)!r}, which takes text; give it to a TextGenerator, or stop_tokens"
        )


def evaluate_weights(model: Any) -> None:
    """Arrays still to be read from a file belong to the stream of this thread: another could not read them."""
    if isinstance(model, Decoder):
        mx.eval([weight.mlx() for weight in model.weights().values()])


def end_tokens_of(model: Any, config: GeneratorConfig, others: Iterable[int]) -> frozenset[int]:
    """The end tokens in force: the one that ``config`` names, or those of the model's configuration and others."""
    if config.eos_token_id is not None:
        return frozenset([config.eos_token_id])
    own: Any = getattr(model, "config", None)
    return frozenset(others) | (own.eos_token_ids() if hasattr(own, "eos_token_ids") else frozenset())


def checked_prompt(model: Any, input_ids: Sequence[int]) -> list[int]:
    """The ids as a list. Raises ``InvalidIndexError`` for one that is no token, ``ArgumentTypeError`` for no ids."""
    try:
        ids = [index(i) for i in input_ids]
    except TypeError as error:
        reason = (
            f"generate: got a prompt {shown(input_ids)}; takes a list of token ids, which a tokenizer makes of text"
        )
        raise ArgumentTypeError(reason) from error
    size = model.vocab_size() if hasattr(model, "vocab_size") else None
    for i in ids:
        if i < 0 or (size is not None and i >= size):
            raise InvalidIndexError("generate", i, size or 2**32)
    return ids


def expect_room(count: int, limit: int | None, context: int | None) -> None:
    """Raise ``InferenceError`` for a prompt of more tokens than there is room for."""
    if limit is None or count <= limit:
        return
    if context is not None and count > context:
        raise InferenceError.InvalidConfig(
            reason=f"the prompt has {count} tokens, the model's context is {context}; shorten it"
        )
    raise InferenceError.CacheFull(position=count, max_len=limit)


def watched(total: int, cancel: Cancellation | None, progress: Progress | None) -> Callable[[int], None]:
    """What is called before each piece of a prompt: it reports, and raises ``Stopped`` once it is cancelled."""

    def before(done: int) -> None:
        if cancel is not None and cancel.is_cancelled():
            raise Stopped
        if progress is not None:
            progress(done, total)

    return before

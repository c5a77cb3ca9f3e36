"""What a generation is told: how much, how tokens are chosen, what is kept of those before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal

from ..constructors import Default
from ..error import ArgumentTypeError, InferenceError
from ..error.text import described
from ..nn.kv_cache import Span
from .sampling import Filters, SamplingStrategy, check_penalty, check_seed

PREFILL_TOKENS = 512
"""How much of a prompt is computed at once: the scores of attention take memory with its square."""

CACHES = ("growing", "fixed", "rotating")


@dataclass(frozen=True)
class GeneratorConfig(Default):
    """How much is generated and how tokens are chosen.

    ``temperature``, ``top_k``, ``top_p`` and ``min_p`` filter what ``sampling`` leaves; under ``Greedy`` the largest
    logit wins whatever they are. ``eos_token_id`` replaces the end tokens of model, tokenizer and chat template;
    ``stop_tokens`` end the text too. The token that ends it is part of the result. ``stop`` are texts that end it
    where it is generated as text; they are left out. ``seed`` makes draws repeatable.

    ``cache`` is how the keys and values of the tokens so far are kept: "growing" as far as the model's context goes;
    "fixed" in ``max_kv_size`` places that are made at once, so that memory is known from the start; "rotating" those
    of the last ``max_kv_size`` tokens, of which ``keep`` are always the first ones of all (attention sinks, Xiao et
    al. 2023, https://arxiv.org/abs/2309.17453), without an end. Positions go on counting in it, as in mlx-lm.
    ``prefill_chunk`` is how many tokens of a prompt are computed at once.
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
    min_p: float | None = None
    stop: Sequence[str] = ()
    cache: Literal["growing", "fixed", "rotating"] = "growing"
    max_kv_size: int | None = None
    keep: int = 4
    prefill_chunk: int = PREFILL_TOKENS

    def filters(self) -> Filters:
        """What logits go through. Raises ``InferenceError.InvalidSampling``."""
        own = Filters(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)
        return self.sampling.filters().and_also(own)

    def validate(self) -> None:
        """Raise ``InferenceError.InvalidConfig`` or ``InvalidSampling`` for a value outside its range."""
        if not isinstance(self.sampling, SamplingStrategy):
            raise _invalid(f"sampling is {self.sampling!r}; takes a SamplingStrategy")
        _expect("max_tokens", self.max_tokens, 0)
        _expect("prefill_chunk", self.prefill_chunk, 1)
        if not isinstance(self.stop_on_eos, bool):
            raise _invalid(f"stop_on_eos is {self.stop_on_eos!r}; takes True or False")
        if not _is_listed(self.stop) or not all(isinstance(text, str) and text for text in self.stop):
            raise _invalid(f"stop is {self.stop!r}; takes a list of texts that are not empty")
        if not _is_listed(self.stop_tokens) or not all(isinstance(token, Integral) for token in self.stop_tokens):
            raise _invalid(f"stop_tokens is {self.stop_tokens!r}; takes a list of token ids")
        if self.eos_token_id is not None:
            _expect("eos_token_id", self.eos_token_id, 0)
        self._validate_cache()
        self.filters()
        check_penalty(self.repetition_penalty)
        check_seed(self.seed)

    def _validate_cache(self) -> None:
        if self.cache not in CACHES:
            raise _invalid(f"cache is {self.cache!r}; takes {', '.join(CACHES)}")
        if self.cache == "growing":
            if self.max_kv_size is not None:
                raise _invalid(f"max_kv_size is {self.max_kv_size!r}; takes cache='fixed' or 'rotating' with it")
            return
        if self.max_kv_size is not None:
            _expect("max_kv_size", self.max_kv_size, 1)
        if self.cache == "rotating":
            _expect("keep", self.keep, 0)
            if self.max_kv_size is None or self.max_kv_size <= self.keep:
                takes = f"takes more than keep, which is {self.keep}"
                raise _invalid(f"max_kv_size is {self.max_kv_size!r} for a rotating cache; {takes}")

    def span(self, window: int | None) -> Span:
        """What a position sees in a block that looks back ``window`` positions.

        In a rotating cache a block with a window of its own keeps no first tokens.
        """
        if self.cache != "rotating" or self.max_kv_size is None:
            return Span(window)
        if window is None:
            return Span(self.max_kv_size - self.keep, self.keep)
        return Span(min(window, self.max_kv_size))

    def limit(self, context: int | None) -> int | None:
        """How many tokens there is room for, given the model's context; ``None`` for any number."""
        if self.cache == "rotating":
            return None
        sizes = [size for size in (context, self.max_kv_size) if size is not None]
        return min(sizes, default=None)

    def room(self, context: int | None) -> int:
        """How many places of the cache are made at the start."""
        return (self.limit(context) or 0) if self.cache == "fixed" else 0


def config_of(name: str, config: GeneratorConfig | None) -> GeneratorConfig:
    """The configuration, or the default one. Raises ``ArgumentTypeError``, and as ``GeneratorConfig.validate``."""
    if config is not None and not isinstance(config, GeneratorConfig):
        raise ArgumentTypeError(f"{name}: got config {described(config)}; takes a GeneratorConfig")
    found = GeneratorConfig() if config is None else config
    found.validate()
    return found


def _is_listed(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))


def _invalid(reason: str) -> InferenceError:
    return InferenceError.InvalidConfig(reason=reason)


def _expect(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise _invalid(f"{name} is {value!r}; takes an integer from {least}")

"""From logits to a token: strategies, filters, repetition penalty. metal-candle: ``metal_candle::inference``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..error import InferenceError
from ..graph.operations.random import next_key
from ..shape import expect_rank
from ..tensor.base import TensorBase
from ..tensor.eager import Tensor

T = TypeVar("T", bound=TensorBase)
Values = np.ndarray[Any, Any]


def _invalid(reason: str) -> InferenceError:
    return InferenceError.InvalidSampling(reason=reason)


@dataclass(frozen=True)
class SamplingStrategy:
    """How a token is chosen: ``Greedy`` (the default, also ``SamplingStrategy()``), ``TopK(k=)``, ``TopP(p=)``,
    ``Temperature(temperature=)``. Values compare by content."""

    Greedy: ClassVar[SamplingStrategy]
    TopK: ClassVar[type[TopK]]
    TopP: ClassVar[type[TopP]]
    Temperature: ClassVar[type[Temperature]]

    @staticmethod
    def default() -> SamplingStrategy:
        """``Greedy``."""
        return SamplingStrategy.Greedy

    def filters(self) -> Filters:
        """The strategy as filters."""
        return Filters(greedy=True)

    def __repr__(self) -> str:
        return "SamplingStrategy.Greedy"


@dataclass(frozen=True)
class TopK(SamplingStrategy):
    """Drawn from the ``k`` largest; k is clamped to 1…vocabulary. Fan et al. 2018, https://arxiv.org/abs/1805.04833."""

    k: int

    def filters(self) -> Filters:
        """The strategy as filters."""
        return Filters(top_k=self.k)


@dataclass(frozen=True)
class TopP(SamplingStrategy):
    """Drawn from the fewest tokens whose probabilities reach ``p``, in (0, 1].

    Holtzman et al. 2019, https://arxiv.org/abs/1904.09751.
    """

    p: float

    def filters(self) -> Filters:
        """The strategy as filters."""
        return Filters(top_p=self.p)


@dataclass(frozen=True)
class Temperature(SamplingStrategy):
    """Drawn from softmax(logits / ``temperature``); 0 is greedy."""

    temperature: float

    def filters(self) -> Filters:
        """The strategy as filters."""
        return Filters(temperature=self.temperature)


SamplingStrategy.Greedy = SamplingStrategy()
SamplingStrategy.TopK, SamplingStrategy.TopP, SamplingStrategy.Temperature = TopK, TopP, Temperature


@dataclass(frozen=True)
class Filters:
    """What a distribution goes through, in this order: temperature, the k largest, the mass p, the part ``min_p`` of
    the likeliest token's probability (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082).

    Raises ``InferenceError.InvalidSampling`` for a value outside its range.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise _invalid(f"temperature is {self.temperature!r}; takes a number from 0, which is greedy")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 0):
            raise _invalid(f"top-k is {self.top_k!r}; takes an integer from 1")
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise _invalid(f"top-p is {self.top_p!r}; takes a number above 0 and at most 1")
        if self.min_p is not None and (not _is_number(self.min_p) or not 0 <= self.min_p <= 1):
            raise _invalid(f"min-p is {self.min_p!r}; takes a number from 0 to 1")

    def and_also(self, other: Filters) -> Filters:
        """Both, one after the other: temperatures multiply, the smaller k and p count, the larger min-p."""
        k = [f.top_k for f in (self, other) if f.top_k is not None]
        p = [f.top_p for f in (self, other) if f.top_p is not None]
        least = [f.min_p for f in (self, other) if f.min_p is not None]
        return Filters(
            greedy=self.greedy or other.greedy,
            temperature=self.temperature * other.temperature,
            top_k=min(k, default=None),
            top_p=min(p, default=None),
            min_p=max(least, default=None),
        )

    def is_greedy(self) -> bool:
        """Whether the largest logit always wins."""
        return self.greedy or self.temperature == 0

    def distribution(self, logits: Values) -> tuple[Values, Values]:
        """Token ids, each once, and the probability of each; tokens that are not listed have none."""
        if self.is_greedy():
            return np.array([logits.argmax()]), np.ones(1)
        with np.errstate(over="ignore"):  # a temperature next to 0 sends all but the largest to -inf
            scaled = (logits - logits.max()) / np.float32(max(self.temperature, 1e-30))
        ids = None if self.top_k is None else _largest(scaled, max(self.top_k, 1))
        if self.top_p is not None and self.top_p < 1:
            ids = _reaching(scaled, ids, self.top_p)
        if self.min_p:
            ids = np.arange(scaled.size) if ids is None else ids
            ids = ids[scaled[ids] >= math.log(self.min_p)]
        weights = np.exp(scaled if ids is None else scaled[ids], dtype=np.float64)
        return np.arange(weights.size) if ids is None else ids, weights / weights.sum()

    def draw(self, logits: Values, rng: np.random.Generator) -> int:
        """One token, by one number of ``rng`` unless it is greedy."""
        ids, probabilities = self.distribution(logits)
        if self.is_greedy():
            return int(ids[0])
        reached = probabilities.cumsum()
        # side="right" passes over tokens of probability 0.
        place = np.searchsorted(reached, rng.random() * reached[-1], side="right")
        return int(ids[min(place, len(ids) - 1)])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _largest(values: Values, count: int) -> Values:
    """Where the ``count`` largest are, the largest first; of equals the first."""
    if count < values.size:
        limit = np.partition(values, values.size - count)[values.size - count]
        above = np.flatnonzero(values > limit)
        chosen = np.concatenate([above, np.flatnonzero(values == limit)[: count - above.size]])
    else:
        chosen = np.arange(values.size)
    order: Values = chosen[np.argsort(-values[chosen], kind="stable")]
    return order


def _reaching(scaled: Values, ids: Values | None, p: float) -> Values:
    """The fewest of ``ids`` (largest first), or of all, that hold the part ``p`` of their mass; at least one."""
    wanted = p * np.exp(scaled if ids is None else scaled[ids]).sum(dtype=np.float64)
    count = 1024  # sorting the whole vocabulary takes longer than all the rest, and is rarely needed
    while True:
        sorted_ids = _largest(scaled, count) if ids is None else ids
        reached = np.exp(scaled[sorted_ids]).cumsum(dtype=np.float64)
        if reached[-1] >= wanted or sorted_ids.size == scaled.size or ids is not None:
            return sorted_ids[: int(np.searchsorted(reached, wanted)) + 1]
        count *= 8


# --- functions on logits ----------------------------------------------------------------------


@dataclass(frozen=True)
class StreamToken:
    """A token as it is generated. ``text`` is filled where a tokenizer is at hand.

    ``logit`` is after the repetition penalty; ``probability`` is that of the full softmax of such logits,
    before temperature and filters.
    """

    token_id: int
    text: str | None
    logit: float
    probability: float
    is_eos: bool


def check_penalty(penalty: float) -> None:
    """Raise ``InferenceError.InvalidSampling`` unless the repetition penalty is above 0."""
    if not _is_number(penalty) or not 0 < penalty < math.inf:
        raise _invalid(f"repetition penalty is {penalty!r}; takes a number above 0, 1 is off")


def check_seed(seed: int | None) -> None:
    """Raise ``InferenceError.InvalidSampling`` for a negative seed."""
    if seed is not None and (type(seed) is not int or seed < 0):
        raise _invalid(f"seed is {seed!r}; takes an integer from 0")


def penalized(values: Values, generated_ids: Iterable[int], penalty: float) -> Values:
    """``apply_repetition_penalty`` on an array, which is not changed."""
    check_penalty(penalty)
    if penalty == 1:
        return values
    ids = np.array(sorted({i for i in generated_ids if 0 <= i < values.size}), dtype=np.int64)
    if not ids.size:
        return values
    values = values.copy()
    seen = values[ids]
    values[ids] = np.where(seen > 0, seen / np.float32(penalty), seen * np.float32(penalty))
    return values


def apply_repetition_penalty(logits: T, generated_ids: Iterable[int], penalty: float) -> T:
    """Logits ``(vocabulary,)`` with those of ids that were generated made less likely: positive ones divided by
    ``penalty``, negative ones multiplied, each distinct id once. Ids outside the vocabulary are passed over.

    Keskar et al. 2019, https://arxiv.org/abs/1909.05858. Raises ``InferenceError.InvalidSampling`` for a
    penalty that is not above 0.
    """
    values = penalized(_values(logits, "apply_repetition_penalty"), generated_ids, penalty)
    made: T = logits._lift(Tensor.new(values, logits.device).to_dtype(logits.dtype))
    return made


def sample_token(
    logits: TensorBase,
    strategy: SamplingStrategy = SamplingStrategy.Greedy,
    generated_ids: Iterable[int] = (),
    repetition_penalty: float = 1.0,
    seed: int | np.random.Generator | None = None,
) -> int:
    """A token from logits ``(vocabulary,)``.

    ``seed`` is a number, a generator to go on with, or ``None`` for MLX's generator, which ``set_seed`` seeds.
    Raises ``InferenceError.SamplingError`` for empty logits, NaN or an infinite maximum, and
    ``InferenceError.InvalidSampling`` for parameters outside their range.
    """
    values = checked(penalized(_values(logits, "sample_token"), generated_ids, repetition_penalty))
    return strategy.filters().draw(values, random_generator(seed))


def sample_token_with_metadata(
    logits: TensorBase,
    strategy: SamplingStrategy = SamplingStrategy.Greedy,
    generated_ids: Iterable[int] = (),
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    seed: int | np.random.Generator | None = None,
) -> StreamToken:
    """``sample_token`` with what is known of the token. Raises as it does."""
    values = checked(penalized(_values(logits, "sample_token"), generated_ids, repetition_penalty))
    token = strategy.filters().draw(values, random_generator(seed))
    return described(token, values, is_eos=token == eos_token_id)


def described(token: int, values: Values, is_eos: bool) -> StreamToken:
    """A token with its logit and its probability among all."""
    ((logit, probability),) = described_rows(np.array([token]), values[None])
    return StreamToken(token, None, float(logit), float(probability), is_eos)


def described_rows(tokens: Values, logits: Values) -> Values:
    """The logit and the probability among all of a token for each row of ``(rows, vocabulary)``: ``(rows, 2)``."""
    top = logits.max(axis=1, keepdims=True)
    totals = np.exp(logits - top).sum(axis=1, dtype=np.float64)
    chosen = np.take_along_axis(logits, tokens[:, None], 1)[:, 0].astype(np.float64)
    return np.stack([chosen, np.exp(chosen - top[:, 0]) / totals], axis=1)


def draw_rows(logits: Values, filters: Sequence[Filters], generators: Sequence[np.random.Generator]) -> Values:
    """A token for each row of ``(rows, vocabulary)``, each by its own filters: the greedy ones all at once."""
    tokens: Values = logits.argmax(axis=1)
    for row, (own, rng) in enumerate(zip(filters, generators)):
        if not own.is_greedy():
            tokens[row] = own.draw(logits[row], rng)
    return tokens


def checked(values: Values) -> Values:
    """The logits, if a token can be chosen by them. Raises ``InferenceError.SamplingError``."""
    if not values.size:
        raise InferenceError.SamplingError(reason="got no logits; takes at least one")
    top = values.max()
    if np.isnan(top):
        count = int(np.isnan(values).sum())
        raise InferenceError.SamplingError(
            reason=f"{count} of {values.size} logits are NaN; the weights or the adapter are damaged"
        )
    if np.isinf(top):
        raise InferenceError.SamplingError(reason=f"the largest logit is {top}; takes a finite one")
    return values


def random_generator(seed: int | np.random.Generator | None) -> np.random.Generator:
    """A generator for a seed; ``None`` draws the seed from MLX's generator.

    Raises ``InferenceError.InvalidSampling`` for a negative seed.
    """
    if isinstance(seed, np.random.Generator):
        return seed
    check_seed(seed)
    return np.random.default_rng(np.array(next_key()) if seed is None else seed)


def generator_for(filters: Filters, seed: int | None) -> np.random.Generator:
    """As ``random_generator``; of filters that draw nothing MLX's generator is not asked.

    A thread that has asked it takes Python's lock once more while it ends, behind ``join``: where the interpreter is
    gone by then, the process aborts (MLX 0.32). So does a user's own thread that draws without a seed.
    """
    return random_generator(0 if filters.is_greedy() else seed)


def _values(logits: TensorBase, op: str) -> Values:
    expect_rank(logits.shape, 1, op)
    return logits.numpy().astype(np.float32, copy=False)

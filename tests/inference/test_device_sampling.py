"""The choice of a token by MLX against the one by NumPy, and generation that goes on before a token is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from metal_candle.error import InferenceError
from metal_candle.graph.operations import ids as graph_ids
from metal_candle.inference import (
    Cancellation,
    Generator,
    GeneratorConfig,
    PromptCache,
    SamplingStrategy,
    device_sampling,
    sampling,
)
from metal_candle.inference.host import HostPlan
from metal_candle.inference.sampling import Filters
from metal_candle.inference.step import CachedStep
from metal_candle.models import Decoder, load_model
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig

import mlx.core as mx
import numpy as np
import pytest

ModelDir = Callable[..., Path]
PROMPT = [5, 17, 3, 60, 22]
FILTERS = [
    Filters(),
    Filters(temperature=0.3),
    Filters(temperature=1e-8),
    Filters(top_k=1),
    Filters(top_k=5, temperature=1.5),
    Filters(top_k=10_000),
    Filters(top_p=0.7),
    Filters(top_p=1e-6),
    Filters(min_p=0.2),
    Filters(top_k=7, top_p=0.8, min_p=0.05, temperature=2.0),
]


class Always:
    """A random generator that gives one number again and again."""

    def __init__(self, number: float) -> None:
        self.random = lambda: number


def drawn(logits: np.ndarray, filters: Filters, at: float) -> int:
    return filters.draw(logits, Always(at))  # type: ignore[arg-type]


@pytest.mark.parametrize("filters", FILTERS, ids=repr)
@pytest.mark.parametrize("size", [1, 2, 50, 3000])
def test_every_token_is_drawn_by_the_same_numbers(filters: Filters, size: int) -> None:
    logits = np.random.default_rng(size).standard_normal(size).astype(np.float32) * 3
    _, probabilities = filters.distribution(logits)
    ends = probabilities.cumsum() / probabilities.sum()
    # The middle of each token's part of [0, 1) that float32 sums can tell from its neighbours', and both ends.
    middles = (ends - probabilities / 2)[probabilities > 1e-4]
    for at in [0.0, *middles[:100].tolist(), 1 - 2**-53]:
        found = device_sampling.choose(mx.array(logits), filters, at)
        assert found.dtype == mx.uint32
        if at < 1 - 2**-53:
            assert found.item() == drawn(logits, filters, at)
        else:  # the last tokens may be less than the sum's rounding
            assert found.item() in filters.distribution(logits)[0]


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = np.array([0.0, 2.0, 1.0, 2.0], np.float32)
    assert device_sampling.choose(mx.array(logits), Filters(greedy=True), 0.9).item() == 1
    assert device_sampling.choose(mx.array(logits), Filters(temperature=0.0), 0.9).item() == 1


def test_tokens_that_cannot_be_are_not_drawn() -> None:
    logits = np.full(9, -np.inf, np.float32)
    logits[[2, 5]] = 1.0
    for filters in FILTERS:
        found = {device_sampling.choose(mx.array(logits), filters, at).item() for at in (0.0, 0.3, 0.6, 0.999999999)}
        assert found <= {2, 5}


def test_penalty_and_facts_are_those_of_numpy() -> None:
    logits = np.random.default_rng(0).standard_normal(40).astype(np.float32)
    ids = [3, 3, 39, 40, -1, 7]  # those outside are passed over
    want = sampling.penalized(logits, ids, 1.7)
    found = device_sampling.penalized(mx.array(logits), device_sampling.seen_of(ids, 40), 1.7)
    np.testing.assert_allclose(np.array(found), want, rtol=1e-6)
    token = sampling.described(7, want, False)
    logit, probability, _ = device_sampling.facts(mx.array(7), found).tolist()  # type: ignore[misc]
    assert (logit, probability) == pytest.approx((token.logit, token.probability), rel=1e-5)


# --- generation -------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_model_dir: ModelDir) -> Decoder:
    return load_model(tiny_model_dir(eos_token_id=None, tie_word_embeddings=False)).model


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether steps are MLX's and chosen from as on a GPU."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(HostPlan, "refusal", staticmethod(lambda output: "off"))
        monkeypatch.setattr(CachedStep, "can_follow", lambda self: on)

    return switch


CONFIG = GeneratorConfig(max_tokens=12)
CONFIGS = {
    "greedy": CONFIG,
    "penalty": replace(CONFIG, repetition_penalty=1.5),
    "temperature": replace(CONFIG, sampling=SamplingStrategy.Temperature(1.3), seed=5),
    "all": replace(CONFIG, top_k=20, top_p=0.9, min_p=0.01, temperature=1.2, seed=3, repetition_penalty=1.2),
    "fixed": replace(CONFIG, cache="fixed", max_kv_size=12),
    "rotating": replace(CONFIG, cache="rotating", max_kv_size=8, keep=2),
}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_same_tokens_either_way(name: str, model: Decoder, ahead: Callable[[bool], None]) -> None:
    found = []
    for on in (False, True):
        ahead(on)
        tokens, error = [], None
        try:
            for token in Generator(model, CONFIGS[name]).stream(PROMPT):
                tokens.append(token)
        except InferenceError.CacheFull as raised:
            error = str(raised)
        found.append((tokens, error))
    (waited, why), (begun, also_why) = found
    assert why == also_why
    assert (why is None) is (name != "fixed")
    assert [token.token_id for token in begun] == [token.token_id for token in waited]
    assert [token.logit for token in begun] == pytest.approx([token.logit for token in waited], rel=1e-5)
    assert [token.probability for token in begun] == pytest.approx([t.probability for t in waited], rel=1e-4)


def test_it_ends_at_a_stop_token_and_a_conversation_goes_on(model: Decoder, ahead: Callable[[bool], None]) -> None:
    ahead(False)
    alone = Generator(model, replace(CONFIG, max_tokens=20)).generate(PROMPT)
    stop = alone[len(PROMPT) + 4]
    ahead(True)
    cache = PromptCache()
    first = Generator(model, replace(CONFIG, stop_tokens=(stop,))).generate(PROMPT, prompt_cache=cache)
    assert first == alone[: alone.index(stop, len(PROMPT)) + 1]
    # Of the last token, which was fed before anybody knew that it is the last, keys and values are there, too.
    assert len(cache) == len(first)
    again = Generator(model, replace(CONFIG, max_tokens=6)).generate([*first, 9], prompt_cache=cache)
    assert cache.reused == len(first)
    ahead(False)
    assert again == Generator(model, replace(CONFIG, max_tokens=6)).generate([*first, 9])
    ahead(True)
    ended = Generator(model, CONFIG).generate(PROMPT, prompt_cache=cache)
    assert len(cache) == len(ended) - 1  # nothing was fed behind the last


def test_a_step_begins_before_its_token_is_known(
    model: Decoder, ahead: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead(True)
    follow, followed = CachedStep.follow, []

    def unknown(self: CachedStep, token: mx.array) -> mx.array:
        class Unreadable:
            def __getattr__(self, name: str) -> Any:
                raise AssertionError(f"np.{name} looks at the ids")

        with monkeypatch.context() as inside:
            inside.setattr(graph_ids, "np", Unreadable())
            followed.append(1)
            return follow(self, token)

    monkeypatch.setattr(CachedStep, "follow", unknown)
    stream = Generator(model, replace(CONFIG, max_tokens=3)).stream(PROMPT)
    assert followed == []
    seen = [(next(stream).token_id >= 0, len(followed)) for _ in range(3)]
    assert seen == [(True, 1), (True, 2), (True, 2)]


def test_cancelled_and_damaged(model: Decoder, ahead: Callable[[bool], None]) -> None:
    ahead(True)
    cancel = Cancellation()
    stream = Generator(model, CONFIG).stream(PROMPT, cancel=cancel)
    next(stream)
    cancel.cancel()
    assert list(stream) == []
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=2))
    for var in adapter.trainable_variables():
        var.set(var.affine(1.0, float("nan")))
    model.apply_adapter(adapter)
    with pytest.raises(InferenceError.SamplingError, match="64 of 64 logits are NaN"):
        next(Generator(model, CONFIG).stream(PROMPT))

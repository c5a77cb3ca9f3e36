"""Strategies, filters, penalty: which tokens can come, how often, and what is refused."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from metal_candle import Device, Error, LazyTensor, Tensor
from metal_candle.error import InferenceError
from metal_candle.inference import (
    SamplingStrategy,
    apply_repetition_penalty,
    sample_token,
    sample_token_with_metadata,
)
from metal_candle.inference.sampling import Filters, described_rows, draw_rows

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

PROBABILITIES = [0.05, 0.4, 0.1, 0.25, 0.2]
LOGITS = [math.log(p) for p in PROBABILITIES]
DRAWS = 4000


def logits(values: list[float] | None = None) -> Tensor:
    return Tensor.new(LOGITS if values is None else values)


def frequencies(strategy: SamplingStrategy) -> dict[int, float]:
    rng = np.random.default_rng(7)
    counts = Counter(sample_token(logits(), strategy, seed=rng) for _ in range(DRAWS))
    return {token: count / DRAWS for token, count in counts.items()}


def check_frequencies(found: dict[int, float], wanted: dict[int, float]) -> None:
    assert set(found) == set(wanted)
    for token, p in wanted.items():
        # Five standard deviations of a count out of DRAWS.
        assert found[token] == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / DRAWS) + 1e-9)


def test_strategies_compare_by_content() -> None:
    assert SamplingStrategy() == SamplingStrategy.default() == SamplingStrategy.Greedy
    assert SamplingStrategy.TopK(k=5) == SamplingStrategy.TopK(k=5) != SamplingStrategy.TopK(k=6)
    assert SamplingStrategy.Greedy != SamplingStrategy.TopP(p=0.5)
    assert len({SamplingStrategy.Temperature(temperature=0.5), SamplingStrategy.Temperature(temperature=0.5)}) == 1
    assert repr(SamplingStrategy.Greedy) == "SamplingStrategy.Greedy"


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert sample_token(logits()) == 1
    assert sample_token(logits([0.5, 3.0, -1.0, 3.0])) == 1
    assert sample_token(logits([2.0])) == 0
    assert sample_token(LazyTensor.from_tensor(logits())) == 1
    assert sample_token(logits().to_dtype("bf16")) == 1


def test_temperature_one_draws_the_softmax() -> None:
    check_frequencies(frequencies(SamplingStrategy.Temperature(temperature=1.0)), dict(enumerate(PROBABILITIES)))


def test_temperature_sharpens_by_its_power() -> None:
    squares = [p**2 for p in PROBABILITIES]
    wanted = {i: s / sum(squares) for i, s in enumerate(squares)}
    check_frequencies(frequencies(SamplingStrategy.Temperature(temperature=0.5)), wanted)


def test_temperature_zero_and_almost_zero_are_greedy() -> None:
    for temperature in (0, 0.0, 1e-300, 1e-9):
        strategy = SamplingStrategy.Temperature(temperature=temperature)
        assert {sample_token(logits(), strategy, seed=seed) for seed in range(20)} == {1}


def test_top_k_draws_among_the_k_largest() -> None:
    check_frequencies(frequencies(SamplingStrategy.TopK(k=2)), {1: 0.4 / 0.65, 3: 0.25 / 0.65})


@pytest.mark.parametrize(("k", "ids"), [(0, {1}), (1, {1}), (5, {0, 1, 2, 3, 4}), (99, {0, 1, 2, 3, 4})])
def test_top_k_is_clamped(k: int, ids: set[int]) -> None:
    assert set(Filters(top_k=k).distribution(np.array(LOGITS, np.float32))[0].tolist()) == ids


def test_top_k_has_exactly_k_among_equals() -> None:
    ids, p = Filters(top_k=3).distribution(np.array([1, 2, 1, 1, 2, 1], np.float32))
    assert ids.tolist() == [1, 4, 0]
    e = math.e
    np.testing.assert_allclose(p, [e / (2 * e + 1), e / (2 * e + 1), 1 / (2 * e + 1)], rtol=1e-6)


@pytest.mark.parametrize(
    ("p", "ids"),
    [(1e-9, [1]), (0.399, [1]), (0.401, [1, 3]), (0.6, [1, 3]), (0.84, [1, 3, 4]), (0.951, [1, 3, 4, 2, 0])],
)
def test_top_p_is_the_smallest_prefix_that_reaches_p(p: float, ids: list[int]) -> None:
    # float32 sums may fall on either side of 0.4, 0.65, 0.85 and 0.95 themselves: p stays off them.
    assert Filters(top_p=p).distribution(np.array(LOGITS, np.float32))[0].tolist() == ids


def test_top_p_draws_renormalised() -> None:
    check_frequencies(frequencies(SamplingStrategy.TopP(p=0.6)), {1: 0.4 / 0.65, 3: 0.25 / 0.65})


def test_top_p_of_a_flat_distribution_needs_many_tokens() -> None:
    ids, p = Filters(top_p=0.5).distribution(np.zeros(20_000, np.float32))
    assert ids.tolist() == list(range(10_000))
    assert p.sum() == pytest.approx(1)


def test_filters_combine_in_order() -> None:
    # Top-k leaves 0.4, 0.25, 0.2, which sum to 0.85: of that, 0.4 and 0.25 are 0.76.
    both = SamplingStrategy.TopK(k=3).filters().and_also(Filters(top_p=0.7))
    ids, p = both.distribution(np.array(LOGITS, np.float32))
    assert ids.tolist() == [1, 3]
    np.testing.assert_allclose(p, [0.4 / 0.65, 0.25 / 0.65], rtol=1e-6)
    merged = Filters(temperature=0.5, top_k=4, top_p=0.9).and_also(Filters(temperature=0.5, top_k=2))
    assert merged == Filters(temperature=0.25, top_k=2, top_p=0.9)


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    st.floats(0.1, 3.0),
    st.none() | st.integers(1, 50),
    st.none() | st.floats(0.01, 1.0),
)
def test_any_distribution_keeps_the_order_of_the_logits(
    values: list[float], temperature: float, k: int | None, p: float | None
) -> None:
    array = np.array(values, np.float32)
    ids, chances = Filters(temperature=temperature, top_k=k, top_p=p).distribution(array)
    assert chances.sum() == pytest.approx(1)
    assert len(set(ids.tolist())) == len(ids) <= (k or len(values))
    kept, lost = array[ids], np.delete(array, ids)
    # Logits so near that the rounding of float32 exponentials decides are a tie.
    assert not lost.size or kept.min() >= lost.max() - 1e-5
    order = np.argsort(kept, kind="stable")
    assert (np.diff(chances[order]) >= -1e-12).all()


def test_min_p_leaves_what_is_likely_enough() -> None:
    values = np.log(np.array([0.4, 0.05, 0.25, 0.2, 0.1], np.float32))
    for least, left in ((0.0, [0, 1, 2, 3, 4]), (0.2, [0, 2, 3, 4]), (0.45, [0, 2, 3]), (0.7, [0]), (1.0, [0])):
        ids, chances = Filters(min_p=least).distribution(values)
        assert sorted(ids.tolist()) == left
        np.testing.assert_allclose(chances, np.exp(values[ids]) / np.exp(values[ids]).sum(), rtol=1e-5)
    # It acts on what a temperature makes of the probabilities, and on what other filters leave.
    assert Filters(min_p=0.3, temperature=0.5).distribution(values)[0].tolist() == [0, 2]
    assert Filters(min_p=0.3, top_k=2).distribution(values)[0].tolist() == [0, 2]
    both = Filters(min_p=0.3).and_also(Filters(min_p=0.6, top_p=0.9))
    assert (both.min_p, both.top_p) == (0.6, 0.9)


def test_rows_are_drawn_and_described_as_each_alone() -> None:
    values = np.random.default_rng(0).normal(size=(5, 40), scale=3).astype(np.float32)
    filters = [Filters(greedy=True), Filters(), Filters(top_k=3), Filters(temperature=0.0), Filters(min_p=0.2)]
    tokens = draw_rows(values, filters, [np.random.default_rng(i) for i in range(5)])
    alone = [f.draw(row, np.random.default_rng(i)) for i, (f, row) in enumerate(zip(filters, values))]
    assert tokens.tolist() == alone
    for token, row, (logit, chance) in zip(alone, values, described_rows(tokens, values)):
        assert logit == row[token]
        assert chance == pytest.approx(float(np.exp(row[token]) / np.exp(row).sum()), rel=1e-5)


def test_impossible_tokens_never_come() -> None:
    values = [-math.inf, 0.0, -math.inf, 0.0]
    strategy = SamplingStrategy.Temperature(temperature=5.0)
    assert {sample_token(logits(values), strategy, seed=seed) for seed in range(50)} == {1, 3}


def test_seeds() -> None:
    strategy = SamplingStrategy.Temperature(temperature=1.0)
    runs = [[sample_token(logits(), strategy, seed=seed) for seed in range(30)] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 1
    runs = []
    for _ in range(2):
        Device.default().set_seed(11)
        runs.append([sample_token(logits(), strategy) for _ in range(30)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 1


def test_the_penalty_makes_each_seen_token_less_likely_once() -> None:
    values = Tensor.new([2.0, -2.0, 1.0, 0.0, 3.0])
    found = apply_repetition_penalty(values, [0, 1, 1, 0, 3, 99, -1], 2.0)
    assert found.to_vec1() == [1.0, -4.0, 1.0, 0.0, 3.0]
    assert values.to_vec1() == [2.0, -2.0, 1.0, 0.0, 3.0]
    assert apply_repetition_penalty(values, [], 2.0).to_vec1() == values.to_vec1()
    assert apply_repetition_penalty(values, [0, 1], 1.0).to_vec1() == values.to_vec1()
    half = apply_repetition_penalty(values.to_dtype("f16"), [4], 1.5)
    assert (half.dtype.as_str(), half.to_vec1()) == ("f16", [2.0, -2.0, 1.0, 0.0, 2.0])
    assert isinstance(apply_repetition_penalty(LazyTensor.from_tensor(values), [0], 2.0), LazyTensor)


def test_the_penalty_changes_what_is_chosen() -> None:
    assert sample_token(logits([2.0, 1.5]), generated_ids=[0], repetition_penalty=2.0) == 1


def test_metadata_tells_logit_and_probability_among_all() -> None:
    token = sample_token_with_metadata(logits(), SamplingStrategy.TopK(k=1), eos_token_id=1)
    assert (token.token_id, token.text, token.is_eos) == (1, None, True)
    assert token.logit == pytest.approx(math.log(0.4), rel=1e-6)
    assert token.probability == pytest.approx(0.4, rel=1e-6)
    assert not sample_token_with_metadata(logits(), eos_token_id=2).is_eos
    penalised = sample_token_with_metadata(logits([2.0, 0.0]), generated_ids=[0], repetition_penalty=2.0)
    assert penalised.logit == 1.0
    assert penalised.probability == pytest.approx(math.e / (math.e + 1))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "token sampling failed: got no logits; takes at least one"),
        ([1.0, math.nan, math.nan], "token sampling failed: 2 of 3 logits are NaN"),
        ([1.0, math.inf], "token sampling failed: the largest logit is inf"),
        ([-math.inf, -math.inf], "token sampling failed: the largest logit is -inf"),
    ],
)
def test_logits_that_choose_nothing(values: list[float], text: str) -> None:
    for strategy in (SamplingStrategy.Greedy, SamplingStrategy.TopP(p=0.5)):
        with pytest.raises(InferenceError.SamplingError) as caught:
            sample_token(Tensor.new(np.array(values, np.float32)), strategy)
        assert str(caught.value).startswith(text)
        assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"strategy": SamplingStrategy.TopK(k=-1)}, "top-k is -1; takes an integer from 1"),
        ({"strategy": SamplingStrategy.TopK(k=1.5)}, "top-k is 1.5; takes an integer from 1"),
        ({"strategy": SamplingStrategy.TopP(p=0.0)}, "top-p is 0.0; takes a number above 0 and at most 1"),
        ({"strategy": SamplingStrategy.TopP(p=1.1)}, "top-p is 1.1; takes"),
        ({"strategy": SamplingStrategy.TopP(p=math.nan)}, "top-p is nan; takes"),
        ({"strategy": SamplingStrategy.Temperature(temperature=-0.1)}, "temperature is -0.1; takes"),
        ({"strategy": SamplingStrategy.Temperature(temperature=math.inf)}, "temperature is inf; takes"),
        ({"strategy": SamplingStrategy.Temperature(temperature="hot")}, "temperature is 'hot'; takes"),
        ({"repetition_penalty": 0.0}, "repetition penalty is 0.0; takes a number above 0, 1 is off"),
        ({"repetition_penalty": -1}, "repetition penalty is -1; takes"),
        ({"seed": -5}, "seed is -5; takes an integer from 0"),
    ],
)
def test_parameters_out_of_range(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InferenceError.InvalidSampling) as caught:
        sample_token(logits(), **arguments)
    assert str(caught.value).startswith(f"sampling parameters: {text}")
    assert isinstance(caught.value, ValueError)


def test_logits_of_another_rank() -> None:
    with pytest.raises(Error, match=r"sample_token: got rank 2, shape \(1, 2\); takes rank 1"):
        sample_token(Tensor.new([[1.0, 2.0]]))

"""Generators of ids: what they give, when they stop, what they refuse; steps by NumPy and by MLX."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import Device, Tensor, Var
from metal_candle.error import InferenceError, InvalidIndexError
from metal_candle.inference import Generator, GeneratorConfig, SamplingStrategy, StreamToken, workers
from metal_candle.inference.computing import computing
from metal_candle.inference.host import HostPlan
from metal_candle.inference.step import CachedStep
from metal_candle.models import Decoder, build, load_model
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig, TargetModule

import mlx.core as mx
import numpy as np
import pytest

ModelDir = Callable[..., Path]
PROMPT = [5, 17, 3, 60, 22]
HOT = SamplingStrategy.Temperature(temperature=2.0)


@pytest.fixture
def model(tiny_model_dir: ModelDir) -> Decoder:
    # No end token of its own, so that a test ends only where it says.
    return load_model(tiny_model_dir(eos_token_id=None)).model


class Counting:
    """A model of eight tokens without a cache: the next one is the last plus one, whatever came before."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.lengths.append(input_ids.dim(1))
        ids = np.array(input_ids.to_vec2())
        return Tensor.new(4.0 * np.eye(8, dtype=np.float32)[(ids + 1) % 8])


def greedy_by_whole_forwards(model: Decoder, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        logits = model.forward(Tensor.new([ids], dtype="u32"))
        ids.append(int(logits.numpy()[0, -1].argmax()))
    return ids


def test_the_prompt_comes_first_and_greedy_is_the_argmax(model: Decoder) -> None:
    config = GeneratorConfig(max_tokens=12)
    generator = Generator(model, config)
    assert generator.config() is config
    wanted = greedy_by_whole_forwards(model, PROMPT, 12)
    assert generator.generate(PROMPT) == wanted
    assert generator.generate(np.array(PROMPT)) == wanted  # a second run starts afresh


def test_any_model_with_a_forward() -> None:
    model = Counting()
    assert Generator(model, GeneratorConfig(max_tokens=5)).generate([2]) == [2, 3, 4, 5, 6, 7]
    assert model.lengths == [1, 2, 3, 4, 5]


def test_nothing_to_do(model: Decoder) -> None:
    assert Generator(model).generate([]) == []
    assert Generator(model, GeneratorConfig(max_tokens=0)).generate(PROMPT) == PROMPT


@pytest.mark.parametrize(
    ("config", "ids"),
    [
        ({"eos_token_id": 5}, [2, 3, 4, 5]),
        ({"stop_tokens": [4]}, [2, 3, 4]),
        ({"stop_tokens": (7, 4), "eos_token_id": 3}, [2, 3]),
        ({"eos_token_id": 3, "stop_on_eos": False}, [2, 3, 4, 5, 6]),
        ({"eos_token_id": 3, "stop_on_eos": False, "stop_tokens": [5]}, [2, 3, 4, 5]),
    ],
)
def test_stops_are_kept(config: dict[str, Any], ids: list[int]) -> None:
    assert Generator(Counting(), GeneratorConfig(max_tokens=4, **config)).generate([2]) == ids


def test_end_tokens_of_model_and_tokenizer_unless_told(tiny_model_dir: ModelDir) -> None:
    new = {"repetition_penalty": 1e6}  # so that no token comes twice
    config = GeneratorConfig(**new)
    free = load_model(tiny_model_dir(eos_token_id=None)).model
    first, second, third, *_ = Generator(free, config).generate(PROMPT)[len(PROMPT) :]
    ending = load_model(tiny_model_dir(eos_token_id=[63, second])).model
    assert Generator(ending, config).generate(PROMPT) == [*PROMPT, first, second]
    assert Generator(free, config, eos_token_ids=[first]).generate(PROMPT) == [*PROMPT, first]
    told = GeneratorConfig(eos_token_id=third, **new)
    assert Generator(ending, told, eos_token_ids=[first]).generate(PROMPT) == [*PROMPT, first, second, third]
    flags = [token.is_eos for token in Generator(ending, config).stream(PROMPT)]
    assert flags == [False, True]


def test_seeded_draws_repeat(model: Decoder) -> None:
    def draw(seed: int | None) -> list[int]:
        return Generator(model, GeneratorConfig(max_tokens=8, sampling=HOT, seed=seed)).generate(PROMPT)

    assert draw(3) == draw(3)
    assert len({tuple(draw(seed)) for seed in range(5)}) == 5
    Device.default().set_seed(4)
    first = draw(None)
    Device.default().set_seed(4)
    assert draw(None) == first != draw(None)


def test_filters_act_on_the_strategy(model: Decoder) -> None:
    greedy = Generator(model, GeneratorConfig(max_tokens=8)).generate(PROMPT)
    for only_one in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 0.0}, {"temperature": 1e-6}):
        config = GeneratorConfig(max_tokens=8, sampling=HOT, seed=1, **only_one)
        assert Generator(model, config).generate(PROMPT) == greedy
    assert Generator(model, GeneratorConfig(max_tokens=8, temperature=0.7, top_k=9)).generate(PROMPT) == greedy


def test_a_high_penalty_never_repeats(model: Decoder) -> None:
    ids = Generator(model, GeneratorConfig(max_tokens=20, repetition_penalty=1e6)).generate(PROMPT)
    assert len(set(ids[len(PROMPT) :])) == 20


def test_the_callback_sees_tokens_and_stops() -> None:
    seen: list[StreamToken] = []

    def until_five(token: StreamToken) -> bool | None:
        seen.append(token)
        return False if token.token_id == 5 else None

    generator = Generator(Counting(), GeneratorConfig(max_tokens=20, eos_token_id=5, stop_on_eos=False))
    assert generator.generate_stream([2], until_five) == [2, 3, 4, 5]
    assert [token.token_id for token in seen] == [3, 4, 5]
    assert [token.is_eos for token in seen] == [False, False, True]
    assert seen[0].logit == 4.0
    assert seen[0].probability == pytest.approx(np.exp(4) / (np.exp(4) + 7))


def test_the_async_stream_lets_others_run_and_can_be_left(model: Decoder) -> None:
    wanted = Generator(model, GeneratorConfig(max_tokens=6)).generate(PROMPT)[len(PROMPT) :]

    async def all_of_them() -> list[int]:
        tokens = Generator(model, GeneratorConfig(max_tokens=6)).generate_stream_async(PROMPT)
        return [token.token_id async for token in tokens]

    async def two_at_once() -> list[list[int]]:
        return list(await asyncio.gather(all_of_them(), all_of_them()))

    async def left_early() -> tuple[list[int], int]:
        tokens, found, turns = Generator(model).generate_stream_async(PROMPT), [], 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        async for token in tokens:
            found.append(token.token_id)
            if len(found) == 2:
                break
        await tokens.aclose()
        counting.cancel()
        return found, turns

    assert asyncio.run(all_of_them()) == wanted
    assert asyncio.run(two_at_once()) == [wanted, wanted]
    found, turns = asyncio.run(left_early())
    assert found == wanted[:2]
    assert turns > 2
    assert not workers.running()


def test_the_context_ends(tiny_model_dir: ModelDir) -> None:
    model = load_model(tiny_model_dir(max_position_embeddings=8, eos_token_id=None)).model
    tokens = Generator(model).stream(PROMPT)
    found = [next(tokens).token_id for _ in range(4)]
    assert len(found) == 4  # 5 of the prompt and 3 of these fill the 8 positions; the 4th is not read any more
    with pytest.raises(InferenceError.CacheFull, match="KV-cache full: position 9 of 8"):
        next(tokens)
    text = "the prompt has 10 tokens, the model's context is 8; shorten it"
    with pytest.raises(InferenceError.InvalidConfig, match=text):
        Generator(model).generate(PROMPT * 2)


def test_ids_that_are_no_tokens(model: Decoder) -> None:
    for wrong in (64, -1):
        with pytest.raises(InvalidIndexError, match=f"generate: index {wrong} is out of range; takes 0..63"):
            Generator(model).generate([3, wrong])


def test_nan_is_reported(model: Decoder) -> None:
    broken = {name: tensor.mlx() for name, tensor in model.weights().items()}
    broken["model.norm.weight"] = broken["model.norm.weight"] * float("nan")
    generator = Generator(build(model.config, broken, "f32"))
    with pytest.raises(InferenceError.SamplingError, match=r"64 of 64 logits are NaN; the weights or the adapter"):
        generator.generate(PROMPT)


@pytest.mark.parametrize(
    ("config", "kind", "text"),
    [
        ({"max_tokens": -1}, InferenceError.InvalidConfig, "max_tokens is -1; takes an integer from 0"),
        ({"max_tokens": 2.5}, InferenceError.InvalidConfig, "max_tokens is 2.5; takes an integer from 0"),
        ({"temperature": -1.0}, InferenceError.InvalidSampling, "temperature is -1.0; takes"),
        ({"top_p": 2.0}, InferenceError.InvalidSampling, "top-p is 2.0; takes"),
        ({"top_k": -3}, InferenceError.InvalidSampling, "top-k is -3; takes"),
        ({"sampling": SamplingStrategy.TopP(p=0)}, InferenceError.InvalidSampling, "top-p is 0; takes"),
        ({"repetition_penalty": 0}, InferenceError.InvalidSampling, "repetition penalty is 0; takes"),
        ({"seed": 1.5}, InferenceError.InvalidSampling, "seed is 1.5; takes"),
    ],
)
def test_configurations_out_of_range(config: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        Generator(Counting(), GeneratorConfig(**config))
    assert text in str(caught.value)


# --- the step ---------------------------------------------------------------------------------


def feed_all(model: Decoder, ids: list[int]) -> np.ndarray:
    step = CachedStep(model)
    return np.array([step.feed(ids[:3]), *(step.feed([i]) for i in ids[3:])])


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_numpy_and_mlx_give_the_same_steps(
    bits: int | None, tiny_model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model_dir(eos_token_id=None, hidden_size=32, intermediate_size=64)
    model = load_model(folder, quantize=bits, group_size=bits and 32, quantize_embeddings=bits is not None).model
    ids = Generator(model, GeneratorConfig(max_tokens=20)).generate(PROMPT)
    by_numpy = feed_all(model, ids)
    taken: list[bool] = []
    monkeypatch.setattr(HostPlan, "refusal", staticmethod(lambda output: taken.append(False) or "off"))
    by_mlx = feed_all(model, ids)
    assert taken == [False]
    # The same operations in float32, summed in other orders.
    np.testing.assert_allclose(by_numpy, by_mlx, atol=5e-6)


def test_large_weights_are_read_by_several_threads(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = feed_all(model, PROMPT)
    monkeypatch.setattr("metal_candle.inference.host_products.PART", 64)
    monkeypatch.setattr("metal_candle.inference.host_products._threads", _three_threads())
    np.testing.assert_array_equal(feed_all(model, PROMPT), whole)


def _three_threads() -> Callable[[], Any]:
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(3)
    return lambda: (pool, 3)


def test_adapters_act_in_the_step_and_later_changes_at_the_next_prompt(model: Decoder) -> None:
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=2, target_modules=tuple(TargetModule)))
    adapter.set_training(False)
    plain = feed_all(model, PROMPT)
    model.apply_adapter(adapter)
    np.testing.assert_allclose(feed_all(model, PROMPT), plain, atol=1e-6)  # B is zero
    for var in adapter.trainable_variables():
        var.set(Tensor.from_mlx(mx.random.normal(tuple(var.shape), scale=0.3)))
    assert isinstance(var, Var)
    caches, wanted = model.new_caches(), []
    for piece in (PROMPT[:3], PROMPT[3:4], PROMPT[4:]):
        wanted.append(model.forward(Tensor.new([piece], dtype="u32"), caches).numpy()[0, -1])
    adapted = feed_all(model, PROMPT)
    assert np.abs(adapted - plain).max() > 0.1
    # Sums in other orders. Deltas this large, of scale 8, amplify their roundings: 2e-5 at worst in 60 draws.
    np.testing.assert_allclose(adapted, wanted, atol=1e-4)


def test_a_dtype_numpy_lacks_runs_with_mlx(tiny_model_dir: ModelDir) -> None:
    model = load_model(tiny_model_dir(eos_token_id=None), "bf16").model
    ids = Generator(model, GeneratorConfig(max_tokens=5)).generate(PROMPT)
    assert len(ids) == 10


def test_dropout_of_an_adapter_in_training_does_not_act(model: Decoder) -> None:
    config = LoRAAdapterConfig(rank=4, dropout=0.5, target_modules=tuple(TargetModule))
    adapter = LoRAAdapter.for_model(model, config)
    for _, layer in adapter.layers():
        layer.lora_b().set(Tensor.randn(0.0, 0.5, layer.lora_b().shape))
    model.apply_adapter(adapter)
    try:
        adapter.set_training(False)
        generator = Generator(model, GeneratorConfig(max_tokens=8))
        wanted = generator.generate([3, 4, 5])
        adapter.set_training(True)
        assert [generator.generate([3, 4, 5]) for _ in range(3)] == [wanted] * 3
        assert all(layer.is_training() for _, layer in adapter.layers())
    finally:
        model.remove_adapter()


def test_two_streams_over_an_adapter_in_training_mode(model: Decoder) -> None:
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=2, dropout=0.5))
    model.apply_adapter(adapter)
    layers = [layer for _, layer in adapter.layers()]

    def training() -> set[bool]:
        return {layer.is_training() for layer in layers}

    assert training() == {True}
    first, second = computing(model), computing(model)
    with first:
        second.__enter__()
        assert training() == {False}
    assert training() == {False}  # the second still computes
    second.__exit__(None, None, None)
    assert training() == {True}
    adapter.set_training(False)
    with computing(model):
        assert training() == {False}
    assert training() == {False}


@pytest.mark.parametrize(
    ("forward", "got"),
    [
        (lambda ids: None, "None"),
        (lambda ids: np.ones((1, 2, 8)), "an ndarray"),
        (lambda ids: Tensor.ones((2, 8)), r"\(2, 8\) f32"),
        (lambda ids: Tensor.ones((2, 2, 8)), r"\(2, 2, 8\) f32"),
        (lambda ids: Tensor.ones((1, 1, 8)), r"\(1, 1, 8\) f32"),
        (lambda ids: Tensor.ones((1, 2, 8), dtype="u32"), r"\(1, 2, 8\) u32"),
    ],
)
def test_a_model_of_ones_own_that_makes_no_logits_is_named(forward: Callable[[Tensor], Any], got: str) -> None:
    class Own:
        def forward(self, input_ids: Tensor) -> Any:
            return forward(input_ids)

    text = rf"^generation failed: forward of Own gave {got}; takes logits \(1, 2, vocabulary\) of a float dtype$"
    with pytest.raises(InferenceError.Failed, match=text):
        Generator(Own(), GeneratorConfig(max_tokens=2)).generate([1, 2])

"""Batches: each row as if it were alone, whatever its length, adapter and end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

from metal_candle import Tensor
from metal_candle.error import InferenceError, InvalidIndexError, ModelError
from metal_candle.inference import (
    BatchGenerator,
    BatchToken,
    Cancellation,
    Generator,
    GeneratorConfig,
    SamplingStrategy,
    TextGenerator,
)
from metal_candle.inference.host import HostPlan
from metal_candle.models import Decoder, load_model
from metal_candle.training import AdapterRegistry, LoRAAdapter, LoRAAdapterConfig, TargetModule

import mlx.core as mx
import numpy as np
import pytest

ModelDir = Callable[..., Path]
RANDOM = np.random.default_rng(7)
# Longer and shorter than the 64 places by which rows begin together, two of one length, one of a single token.
PROMPTS = [RANDOM.integers(3, 64, size=count).tolist() for count in (9, 150, 1, 70, 9)]
PLAIN = GeneratorConfig(max_tokens=12)


def adapter(model: Decoder, rank: int, alpha: float, seed: int, *targets: TargetModule) -> LoRAAdapter:
    config = LoRAAdapterConfig(rank=rank, alpha=alpha, target_modules=targets or tuple(TargetModule))
    made = LoRAAdapter.for_model(model, config)
    for i, var in enumerate(made.trainable_variables()):
        var.set(Tensor.from_mlx(mx.random.normal(tuple(var.shape), scale=0.3, key=mx.random.key(100 * seed + i))))
    made.set_training(False)
    return made


def three(model: Decoder) -> dict[str, LoRAAdapter]:
    """Of different ranks, scales and targets."""
    return {
        "all": adapter(model, 2, 4.0, 1),
        "attention": adapter(model, 5, 5.0, 2, TargetModule.QProj, TargetModule.VProj),
        "gate": adapter(model, 3, 9.0, 3, TargetModule.GateProj, TargetModule.VProj),
    }


def alone(
    model: Decoder, ids: list[int], deltas: LoRAAdapter | None, config: GeneratorConfig
) -> list[tuple[int, float, float]]:
    model.remove_adapter()
    if deltas is not None:
        model.apply_adapter(deltas)
    tokens = [(t.token_id, t.logit, t.probability) for t in Generator(model, config).stream(ids)]
    model.remove_adapter()
    return tokens


def by_row(tokens: list[BatchToken], rows: int) -> list[list[tuple[int, float, float]]]:
    found: list[list[tuple[int, float, float]]] = [[] for _ in range(rows)]
    for row, token in tokens:
        found[row].append((token.token_id, token.logit, token.probability))
    return found


def check(found: list[list[tuple[int, float, float]]], wanted: list[list[tuple[int, float, float]]]) -> None:
    assert [[i for i, *_ in row] for row in found] == [[i for i, *_ in row] for row in wanted]
    for row, other in zip(found, wanted):
        # The same float32 operations, summed in other orders.
        np.testing.assert_allclose(np.array(row)[:, 1:], np.array(other)[:, 1:], atol=2e-5)


@pytest.fixture
def model(tiny_model_dir: ModelDir) -> Decoder:
    return load_model(tiny_model_dir(eos_token_id=None, tie_word_embeddings=False)).model


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "llama"},
        {"model_type": "mistral", "sliding_window": 5},
        {"model_type": "qwen3", "sliding_window": 40, "use_sliding_window": True, "max_window_layers": 1},
    ],
    ids=["llama", "windows", "one window"],
)
@pytest.mark.parametrize(("chunk", "host"), [(512, False), (50, True)], ids=["mlx", "pieces-numpy"])
def test_each_row_is_as_if_alone(
    tiny_model_dir: ModelDir, settings: dict[str, Any], chunk: int, host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not host:
        monkeypatch.setattr(HostPlan, "refusal", staticmethod(lambda output: "off"))
    model = load_model(tiny_model_dir(eos_token_id=None, tie_word_embeddings=False, **settings)).model
    adapters = three(model)
    names = ["all", None, "gate", "attention", "all"]
    config = GeneratorConfig(max_tokens=12, prefill_chunk=chunk)
    found = by_row(list(BatchGenerator(model, config, adapters).stream(PROMPTS, names)), 5)
    wanted = [alone(model, ids, None if name is None else adapters[name], config) for ids, name in zip(PROMPTS, names)]
    check(found, wanted)


@pytest.mark.parametrize("bits", [None, 4])
def test_a_packed_base_a_fixed_cache_and_adapters_of_all_formats(
    tiny_model_dir: ModelDir, tmp_path: Path, bits: Literal[4] | None
) -> None:
    """Ranks that differ from module to module, as mlx-lm's format pads them and PEFT's says them in patterns."""
    folder = tiny_model_dir(hidden_size=64, head_dim=16, eos_token_id=None, tie_word_embeddings=False)
    model = cast(Decoder, load_model(folder, quantize=bits, group_size=None if bits is None else 32).model)
    small, large = adapter(model, 2, 4.0, 1), adapter(model, 6, 12.0, 2)
    layers = {path: (small, large)[i % 2].layer_at(path) for i, path in enumerate(small.paths())}
    mixed = LoRAAdapter.of_layers(small.config(), cast(Any, layers), model.num_layers())
    adapters = {"mixed": mixed, "small": small}
    for format in ("peft", "mlx-lm", "metal-candle"):
        mixed.save(tmp_path / format, format=format)
        adapters[format] = LoRAAdapter.load(tmp_path / format, model)
    config = GeneratorConfig(max_tokens=8, cache="fixed", max_kv_size=100, repetition_penalty=1.2, prefill_chunk=13)
    prompts = [PROMPTS[0], PROMPTS[3], PROMPTS[3], PROMPTS[3], PROMPTS[2], PROMPTS[3]]
    names = ["small", "mixed", "peft", "mlx-lm", None, "metal-candle"]
    found = by_row(list(BatchGenerator(model, config, adapters).stream(prompts, names)), 6)
    wanted = [alone(model, ids, adapters[name] if name else None, config) for ids, name in zip(prompts, names)]
    check(found, wanted)
    for row in (2, 3, 5):
        check([found[row]], [found[1]])
    assert found[1] != alone(model, prompts[1], None, config)


def test_rows_that_end_leave_and_the_others_go_on(model: Decoder) -> None:
    lengths = [3, 30, 9, 0, 17]
    configs = [GeneratorConfig(max_tokens=count) for count in lengths]
    stops = alone(model, PROMPTS[1], None, configs[1])[4][0]
    configs[1] = GeneratorConfig(max_tokens=30, stop_tokens=[stops])
    found = by_row(list(BatchGenerator(model).stream(PROMPTS, configs=configs)), 5)
    check(
        [row for row in found if row], [alone(model, ids, None, c) for ids, c in zip(PROMPTS, configs) if c.max_tokens]
    )
    assert found[1][-1][0] == stops
    assert len(found[1]) <= 5


def test_a_batch_without_names_is_the_base_even_where_an_adapter_acts(model: Decoder) -> None:
    base = [alone(model, ids, None, PLAIN) for ids in PROMPTS]
    adapters = three(model)
    model.apply_adapter(adapters["all"])
    found = by_row(list(BatchGenerator(model, PLAIN, adapters).stream(PROMPTS)), 5)
    check(found, base)
    assert all(p.adapter is adapters["all"].layer_at(p.path) for p in model.projections())


def test_the_model_is_left_alone_while_a_batch_runs(model: Decoder) -> None:
    adapters = three(model)
    stream = BatchGenerator(model, PLAIN, adapters).stream(PROMPTS, ["all"] * 5)
    next(stream)
    assert not model.has_adapter()
    base = Generator(model, PLAIN).generate(PROMPTS[0])
    stream.close()
    assert Generator(model, PLAIN).generate(PROMPTS[0]) == base


def test_a_registry_and_adapters_that_are_trained_meanwhile(model: Decoder) -> None:
    registry, deltas = AdapterRegistry(), adapter(model, 2, 4.0, 1)
    registry.add_adapter("one", deltas)
    batch = BatchGenerator(model, PLAIN, registry)
    before = batch.generate(PROMPTS[:2], ["one", None])
    for var in deltas.trainable_variables():
        var.set(var.as_tensor().mul_scalar(-2.0))
    after = batch.generate(PROMPTS[:2], ["one", None])
    assert before[1] == after[1]
    assert [i for i, *_ in alone(model, PROMPTS[0], deltas, PLAIN)] == after[0][len(PROMPTS[0]) :]


def test_an_adapter_that_is_nan_stays_in_its_row(model: Decoder) -> None:
    adapters = three(model)
    for var in adapters["gate"].trainable_variables():
        var.set(Tensor.full(float("inf"), tuple(var.shape)))
    batch = BatchGenerator(model, GeneratorConfig(max_tokens=4), adapters)
    stream = batch.stream([PROMPTS[0], PROMPTS[4]], ["all", "gate"])
    with pytest.raises(InferenceError.SamplingError, match="64 of 64 logits are NaN"):
        next(stream)
    # Beside a row that ends at once, nothing of it is seen.
    configs = [GeneratorConfig(max_tokens=4), GeneratorConfig(max_tokens=0)]
    found = by_row(list(batch.stream([PROMPTS[0], PROMPTS[4]], ["all", "gate"], configs)), 2)
    check(found[:1], [alone(model, PROMPTS[0], adapters["all"], GeneratorConfig(max_tokens=4))])


def test_draws_of_a_row_are_those_of_its_own_seed(model: Decoder) -> None:
    hot = SamplingStrategy.Temperature(temperature=2.0)
    config = GeneratorConfig(max_tokens=10, sampling=hot, seed=3, repetition_penalty=1.3, top_k=20)
    found = BatchGenerator(model, config).generate([PROMPTS[0]] * 3)
    wanted = [
        Generator(model, GeneratorConfig(**{**vars(config), "seed": 3 + i})).generate(PROMPTS[0]) for i in range(3)
    ]
    assert found == wanted
    assert len({tuple(row) for row in found}) == 3
    mixed = [PLAIN, GeneratorConfig(**{**vars(config), "seed": 5}), PLAIN]
    found = BatchGenerator(model).generate([PROMPTS[0]] * 3, configs=mixed)
    assert found[0] == found[2] == Generator(model, PLAIN).generate(PROMPTS[0])
    assert found[1] == wanted[2]


def test_empty_prompts_and_no_prompts(model: Decoder) -> None:
    batch = BatchGenerator(model, PLAIN)
    assert batch.generate([]) == []
    assert batch.generate([[], PROMPTS[0]]) == [[], Generator(model, PLAIN).generate(PROMPTS[0])]
    assert batch.config() is PLAIN


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_halves(tiny_model_dir: ModelDir, dtype: str) -> None:
    model = load_model(tiny_model_dir(eos_token_id=None), dtype).model
    adapters = three(model)
    found = by_row(list(BatchGenerator(model, PLAIN, adapters).stream(PROMPTS[:2], ["all", "gate"])), 2)
    wanted = [alone(model, ids, adapters[name], PLAIN) for ids, name in zip(PROMPTS, ["all", "gate"])]
    for row, other in zip(found, wanted):
        # Halves round to 3 digits after each operation; only the first token is sure to be chosen from like logits.
        assert row[0][1] == pytest.approx(other[0][1], abs=0.2)
    assert all(len(row) == 12 for row in found)


def test_a_fixed_cache_and_the_context_end_rows(tiny_model_dir: ModelDir) -> None:
    model = load_model(tiny_model_dir(max_position_embeddings=20, eos_token_id=None)).model
    batch = BatchGenerator(model, GeneratorConfig(cache="fixed", max_kv_size=12))
    with pytest.raises(InferenceError.CacheFull, match="KV-cache full: position 13 of 12"):
        batch.generate([PROMPTS[0], [3]])
    with pytest.raises(InferenceError.InvalidConfig, match="the prompt has 150 tokens, the model's context is 20"):
        batch.generate([[3], PROMPTS[1]])
    few = GeneratorConfig(cache="fixed", max_kv_size=12, max_tokens=4)
    found = BatchGenerator(model, few).generate([PROMPTS[0], [3]])
    assert found == [Generator(model, GeneratorConfig(max_tokens=4)).generate(ids) for ids in (PROMPTS[0], [3])]


def test_it_is_cancelled_and_runs_beside_an_event_loop(model: Decoder) -> None:
    cancel, found = Cancellation(), []
    for token in BatchGenerator(model, PLAIN).stream(PROMPTS, cancel=cancel):
        found.append(token)
        if len(found) == 7:
            cancel.cancel()
    assert len(found) == 10  # the tokens of a step come together
    assert list(BatchGenerator(model, PLAIN).stream(PROMPTS, cancel=cancel)) == []

    async def rows() -> list[BatchToken]:
        return [token async for token in BatchGenerator(model, PLAIN).stream_async(PROMPTS)]

    assert asyncio.run(rows()) == list(BatchGenerator(model, PLAIN).stream(PROMPTS))


def test_the_prompts_are_counted_as_they_are_read(model: Decoder) -> None:
    seen: list[tuple[int, int]] = []
    config = GeneratorConfig(max_tokens=1, prefill_chunk=50)
    BatchGenerator(model, config).generate(PROMPTS, progress=lambda done, total: seen.append((done, total)))
    # Places begin to be read at 150 - 70 and 150 - 9, rounded down to 64; at most 50 of them at once.
    assert seen == [(0, 150), (50, 150), (64, 150), (114, 150), (128, 150), (150, 150)]


def test_texts_and_messages(tiny_model_dir: ModelDir) -> None:
    loaded = load_model(tiny_model_dir())
    adapters = three(loaded.model)
    generator = TextGenerator(loaded, GeneratorConfig(max_tokens=10, stop=["the"]), adapters)
    prompts: list[Any] = ["a cat", [{"role": "user", "content": "a cat"}]]
    found = generator.generate_batch(prompts, [None, "all"])
    first = generator.generate(prompts[0])
    loaded.model.apply_adapter(adapters["all"])
    assert found == [first, generator.generate(prompts[1])]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"adapters": ["wrong", None]}, "no adapter 'wrong'; there is all, attention, gate"),
        ({"adapters": ["all"]}, "1 adapters for 2 prompts; takes one for each"),
        ({"configs": []}, "0 configs for 2 prompts; takes one for each"),
        ({"configs": [PLAIN, GeneratorConfig(stop=["x"])]}, "give it to a TextGenerator"),
    ],
)
def test_mistakes_in_a_call(model: Decoder, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InferenceError.InvalidConfig, match=text):
        BatchGenerator(model, PLAIN, three(model)).generate([[3], [4]], **arguments)


def test_mistakes_in_what_it_is_made_of(model: Decoder, tiny_model_dir: ModelDir) -> None:
    with pytest.raises(InferenceError.InvalidConfig, match="cache is 'rotating'; a batch takes growing or fixed"):
        BatchGenerator(model, GeneratorConfig(cache="rotating", max_kv_size=9))
    with pytest.raises(InferenceError.InvalidConfig, match="the model is a int; a batch takes a Decoder"):
        BatchGenerator(3)  # type: ignore[arg-type]
    with pytest.raises(InferenceError.InvalidConfig, match="no adapter 'one'; there is none"):
        BatchGenerator(model).generate([[3]], ["one"])
    with pytest.raises(InvalidIndexError, match="generate: index 64 is out of range"):
        BatchGenerator(model).generate([[3], [64]])
    longer = load_model(tiny_model_dir(num_hidden_layers=3)).model
    with pytest.raises(ModelError.InvalidConfig, match="adapter 'all' spans 3 layers, the model has 2"):
        BatchGenerator(model, PLAIN, three(longer)).generate([[3]], ["all"])

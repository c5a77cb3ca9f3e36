"""The plan of a run's memory against what MLX measures while it trains."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from metal_candle import TrainingError
from metal_candle.models import load_model
from metal_candle.models.load import load_config
from metal_candle.training import AdapterTrainer, LoRAAdapter, LoRAAdapterConfig, TargetModule, TrainingConfig
from metal_candle.training.allocation import usage
from metal_candle.training.data import Example
from metal_candle.training.memory import batch_of, longest_batch, plan_memory
from metal_candle.training.memory_plan import MemoryPlan
from metal_candle.training.tape import tape_of

import mlx.core as mx
import numpy as np
import pytest

ALL = tuple(TargetModule)
WITHIN = 0.2
# Activations dominate.
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}

pytestmark = pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="plans are those of the CPU's kernels")


def measured(model: Any, lora: LoRAAdapterConfig, training: TrainingConfig, batch: Any, planned: int = 0) -> int:
    """The peak above the weights of a first and of steady steps: more than two where it is well below the plan.

    How far MLX begins primitives ahead, and so how much is there at once, is less where the machine is busy.
    """
    gc.collect()  # trainers of other tests, in reference cycles: given back meanwhile they would lower the peak
    before = mx.get_active_memory()
    trainer = AdapterTrainer(model, LoRAAdapter.for_model(model, lora), training)
    peaks = []
    while len(peaks) < 2 or (max(peaks) < 0.9 * planned and len(peaks) < 10):
        mx.clear_cache()
        mx.reset_peak_memory()
        trainer.train_step([batch] * training.accumulation_steps)
        peaks.append(mx.get_peak_memory() - before)
    model.remove_adapter()
    del trainer
    return max(peaks)


def above_weights(plan: MemoryPlan) -> int:
    return plan.peak - plan.weights


@pytest.mark.parametrize(
    ("rows", "length", "rank", "dtype", "settings"),
    [
        (1, 384, 4, "f32", {}),
        (4, 192, 8, "f32", {}),
        (8, 64, 4, "f32", {}),
        (4, 192, 4, "f32", {"gradient_checkpointing": True}),
        (1, 512, 4, "f32", {"gradient_checkpointing": True}),
        (4, 128, 16, "bf16", {}),
        (4, 128, 4, "bf16", {"gradient_checkpointing": True}),
        (4, 128, 8, "f32", {"accumulation_steps": 2}),
        (2, 256, 8, "f32", {"packing": True}),
        (2, 256, 4, "bf16", {"packing": True, "gradient_checkpointing": True}),
    ],
)
def test_plan_is_within_a_fifth_of_the_measured_peak(
    tiny_model_dir: Callable[..., Path], rows: int, length: int, rank: int, dtype: str, settings: Any
) -> None:
    folder = tiny_model_dir(**SIZES)
    lora, training = LoRAAdapterConfig(rank, 8.0, 0.0, ALL), TrainingConfig(**settings)
    batch = batch_of(rows, length, packed=training.packing)
    plan = plan_memory(load_config(folder), lora, training, batch, dtype)
    model = load_model(folder, dtype).model
    planned = above_weights(plan)
    assert planned == pytest.approx(measured(model, lora, training, batch, planned), rel=WITHIN)
    assert not model.has_adapter()


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("bits", [4, 8])
def test_plan_of_a_quantised_base(tiny_model_dir: Callable[..., Path], bits: int, settings: Any) -> None:
    # Wide and with few tokens, so that unpacked weights are much of the peak.
    folder = tiny_model_dir(**{**SIZES, "hidden_size": 256, "intermediate_size": 1024, "head_dim": 64})
    lora, training, batch = LoRAAdapterConfig(2, 8.0, 0.0, ALL), TrainingConfig(**settings), batch_of(1, 64)
    model = load_model(folder, quantize=bits).model
    planned = above_weights(plan_memory(model, lora, training, batch))
    assert planned == pytest.approx(measured(model, lora, training, batch, planned), rel=WITHIN)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_between_steps_a_run_holds_what_the_plan_says(tiny_model_dir: Callable[..., Path], accumulated: int) -> None:
    """Values that variables had are given back at once, after steps of several shapes, and without the collector."""
    lora, training = LoRAAdapterConfig(32, 8.0, 0.0, ALL), TrainingConfig(accumulation_steps=accumulated)
    model = load_model(tiny_model_dir(**SIZES)).model
    plan = plan_memory(model, lora, training, batch_of(1, 8))
    gc.collect()
    gc.disable()
    try:
        before = mx.get_active_memory()
        trainer = AdapterTrainer(model, LoRAAdapter.for_model(model, lora), training)
        for length in (8, 16, 24):
            trainer.train_step([batch_of(1, length)] * accumulated)
        # An allocation may be a page larger than asked for; a copy of the variables would be a third more.
        held = plan.adapter + plan.optimizer
        assert mx.get_active_memory() - before == pytest.approx(held, rel=0.1)
    finally:
        gc.enable()


def test_parts_add_up_and_say_what_they_are(tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir(**SIZES)
    lora, training = LoRAAdapterConfig(4, 8.0, 0.0, ALL), TrainingConfig()
    plan = plan_memory(load_config(folder), lora, training, batch_of(2, 128, 100), what_fits=True)
    model = load_model(folder).model
    assert plan.weights == sum(weight.mlx().nbytes for weight in model.weights().values())
    adapter = LoRAAdapter.for_model(model, lora)
    assert plan.adapter == 4 * adapter.num_trainable_parameters()
    assert plan.optimizer >= 2 * plan.adapter
    assert (plan.rows, plan.length, plan.targets) == (2, 128, 100)
    # Of the model itself the plan is the same.
    assert plan_memory(model, lora, training, batch_of(2, 128, 100)).peak == plan.peak
    assert min(plan.gradients, plan.head, plan.activations) >= 0
    assert plan.activations > plan.head
    table = plan.table()
    assert f"{plan.peak / 2**20:,.1f} MiB" in table
    assert "it fits" in table
    assert plan.alternatives["with gradient checkpointing"] < 0.7 * plan.peak
    assert plan.alternatives["on a base of 4 bits"] < plan.peak
    four = load_model(folder, quantize=4).model
    assert "on a base of 4 bits" not in plan_memory(four, lora, training, batch_of(2, 128), what_fits=True).alternatives
    assert plan.largest_rows is not None
    assert plan.largest_length is not None
    assert plan.largest_rows > 2
    assert plan.largest_length > 128


@pytest.mark.parametrize("length", [16, 200])
def test_packed_rows_of_any_length_have_a_plan(tiny_model_dir: Callable[..., Path], length: int) -> None:
    lora, training = LoRAAdapterConfig(4, 8.0, 0.0, ALL), TrainingConfig(packing=True)
    batch = batch_of(1, length, packed=True)
    plan = plan_memory(load_config(tiny_model_dir()), lora, training, batch, what_fits=True)
    assert plan.largest_rows is not None
    assert plan.largest_rows > 1


def test_head_grows_with_the_targets(tiny_model_dir: Callable[..., Path]) -> None:
    config = load_config(tiny_model_dir(vocab_size=4096, **SIZES))
    lora, training = LoRAAdapterConfig(4, 8.0, 0.0, ALL), TrainingConfig()
    few, many = (plan_memory(config, lora, training, batch_of(2, 64, count)) for count in (2, 128))
    assert few.head < many.head
    assert few.activations == pytest.approx(many.activations, rel=0.25)


def test_planning_allocates_no_weights_and_leaves_the_random_state(tiny_model_dir: Callable[..., Path]) -> None:
    config = load_config(tiny_model_dir())
    big = replace(config, hidden_size=2048, intermediate_size=8192, vocab_size=50_000, explicit_head_dim=512)
    mx.random.seed(3)
    expected = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(3)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    plan = plan_memory(big, LoRAAdapterConfig(4, 8.0, 0.1, ALL), TrainingConfig(), batch_of(1, 32))
    assert plan.weights > 400_000_000
    assert mx.get_peak_memory() - before < 20_000_000
    assert mx.random.uniform(shape=(4,)).tolist() == expected


def test_what_does_not_fit_says_so() -> None:
    plan = MemoryPlan(8, 512, 100, 10, 1, 2, 3, 4, 100, 120, False)
    assert plan.peak == 120
    assert not plan.fits()
    assert "it does not fit: a run may take 90% of the device's memory" in plan.table()


def test_the_longest_batch_of_all_epochs() -> None:
    """A window is 16 batches; of 33 rows one is alone in a batch, another one in each epoch."""
    rows = [Example([3] * n, [True] * n, Path("made.jsonl"), n) for n in (*[5] * 32, 40)]

    def shape(seed: int, **wishes: int) -> tuple[int, ...]:
        return longest_batch(TrainingConfig(batch_size=2, seed=seed, **wishes), rows).inputs.shape

    alone = next(seed for seed in range(300) if shape(seed, num_epochs=1) == (1, 48))
    assert shape(alone, num_epochs=2) == (2, 48)
    assert shape(alone, num_epochs=2, max_steps=17) == (1, 48)


def test_longest_batch_and_refusals(tiny_model_dir: Callable[..., Path]) -> None:
    rows = [Example([3] * n, [True] * n, Path("made.jsonl"), n) for n in (5, 40, 7, 33)]
    with pytest.raises(TrainingError.InvalidConfig, match="longest_batch: there are no examples to train on"):
        longest_batch(TrainingConfig(), [])
    batch = longest_batch(TrainingConfig(batch_size=2), rows)
    assert batch.inputs.shape == (2, 48)
    model = load_model(tiny_model_dir()).model
    lora = LoRAAdapterConfig(2, 4.0, 0.0, ALL)
    model.apply_adapter(LoRAAdapter.for_model(model, lora))
    with pytest.raises(TrainingError.InvalidConfig, match=r"an adapter acts in the model; remove_adapter\(\) first"):
        plan_memory(model, lora, TrainingConfig(), batch)


@pytest.mark.parametrize(
    "build",
    [
        lambda a, b: [mx.exp(a + b) * 2],
        lambda a, b: [(a @ b), (a.T @ b)],
        lambda a, b: [mx.softmax((a @ b) * 2, -1) @ a],
        lambda a, b: [mx.concatenate([a, b])[:600].T + 1],
        lambda a, b: [(a[:, :500].T @ b).sum(0)],
    ],
)
def test_a_tape_is_what_mlx_allocates(build: Callable[..., list[mx.array]]) -> None:
    a, b = (mx.random.normal((1000, 1000), key=mx.random.key(i)) for i in (0, 1))
    mx.eval(a, b)
    planned = usage(tape_of(build(a, b)))
    assert sum(planned.parts.values()) == planned.peak
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    results = build(a, b)
    mx.eval(results)
    assert planned.peak == pytest.approx(mx.get_peak_memory() - before, rel=0.05)
    assert planned.left == pytest.approx(mx.get_active_memory() - before, rel=0.05)
    np.array(results[0])


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "length", "on"), [(2, 128, False), (1, 192, True)])
def test_smollm2(rows: int, length: int, on: bool) -> None:
    lora, training = LoRAAdapterConfig(8, 16.0, 0.0, ALL), TrainingConfig(gradient_checkpointing=on)
    plan = plan_memory(load_config("smollm2"), lora, training, batch_of(rows, length))
    planned = above_weights(plan)
    found = measured(load_model("smollm2").model, lora, training, batch_of(rows, length), planned)
    assert planned == pytest.approx(found, rel=WITHIN)

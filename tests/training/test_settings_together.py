"""Settings of a run that each have their tests, all at once: a quantised base, packed rows, blocks computed again,
batches put together, dropout, an adapter that acts in every projection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from metal_candle import Device
from metal_candle.models import AdaptableModel, load_model
from metal_candle.training import (
    AdapterTrainer,
    LoRAAdapter,
    LoRAAdapterConfig,
    LRScheduler,
    StepMetrics,
    TargetModule,
    TrainingConfig,
)
from metal_candle.training.data import Example

import numpy as np
import pytest

ROWS = [
    Example(
        np.random.default_rng(line).integers(3, 64, length).tolist(),
        [i > length // 3 for i in range(length)],
        Path("made.jsonl"),
        line,
    )
    for line, length in enumerate((12, 5, 30, 9, 2, 17, 8, 21, 6, 11))
]


def model_of(folder: Path, bits: Literal[4] | None) -> AdaptableModel:
    return load_model(folder, quantize=bits, group_size=None if bits is None else 32).model


def trainer_of(folder: Path, bits: Literal[4] | None, checkpointing: bool) -> AdapterTrainer:
    Device.default().set_seed(3)
    model = model_of(folder, bits)
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, 0.2, tuple(TargetModule)))
    config = TrainingConfig(
        num_epochs=2,
        lr_scheduler=LRScheduler.warmup_cosine(1, 8, 1e-2, 1e-3),
        batch_size=2,
        accumulation_steps=2,
        packing=True,
        max_length=32,
        gradient_checkpointing=checkpointing,
    )
    return AdapterTrainer(model, adapter, config)


@pytest.mark.parametrize("bits", [None, 4])
def test_a_run_is_the_same_with_blocks_computed_again_and_goes_on_bit_for_bit(
    tiny_model_dir: Callable[..., Path], tmp_path: Path, bits: Literal[4] | None
) -> None:
    folder = tiny_model_dir(hidden_size=64, intermediate_size=128, head_dim=16)
    plain = trainer_of(folder, bits, checkpointing=False)
    losses = [event.loss for event in plain.run(ROWS, ROWS[:3])]
    again = trainer_of(folder, bits, checkpointing=True)
    recomputed = [event.loss for event in again.run(ROWS, ROWS[:3])]
    # The same float32 numbers in other orders, through some steps of an optimizer that divides by small ones.
    np.testing.assert_allclose(recomputed, losses, rtol=2e-4)
    assert losses[-1] < losses[0]
    stopped = trainer_of(folder, bits, checkpointing=True)
    for event in stopped.run(ROWS, ROWS[:3]):
        if isinstance(event, StepMetrics):
            break
    stopped.save_state(tmp_path / "training.state")
    Device.default().set_seed(77)  # which the state has to undo: dropout draws
    resumed = AdapterTrainer.resume(tmp_path / "training.state", model_of(folder, bits))
    assert list(resumed.run(ROWS, ROWS[:3]))
    assert resumed.step == again.step > 1
    for one, other in zip(resumed.adapter.trainable_variables(), again.adapter.trainable_variables()):
        assert np.array_equal(one.numpy(), other.numpy())

"""Runs whose numbers are NumPy's, as those that come from an array or a search over settings are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from metal_candle.models import load_model
from metal_candle.nn import ParamsAdamW
from metal_candle.training import AdamWConfig, AdapterTrainer, LRScheduler

import numpy as np
import pytest
from resumed_runs import CONFIG, TRAIN, VALID, arrays, assert_same_bits, fresh


@pytest.mark.parametrize("optimizer", [ParamsAdamW, AdamWConfig])
def test_a_run_goes_on_with_the_same_bits(
    optimizer: Callable[..., ParamsAdamW | AdamWConfig], tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_model_dir()
    config = replace(
        CONFIG,
        num_epochs=np.int64(2),
        seed=np.uint32(5),
        max_grad_norm=np.float32(0.3),
        lr_scheduler=LRScheduler.warmup_cosine(np.int32(2), np.int64(7), np.float32(1e-2), np.float32(1e-3)),
        optimizer_config=optimizer(np.float32(1e-2), np.float32(0.9), np.float32(0.999)),
    )
    whole = fresh(folder, config=config)
    list(whole.run(TRAIN, VALID))
    interrupted = fresh(folder, config=replace(config, max_steps=np.int64(3)))
    list(interrupted.run(TRAIN, VALID))
    interrupted.save_state(tmp_path / "run")
    resumed = AdapterTrainer.resume(tmp_path / "run", load_model(folder).model, max_steps=None)
    list(resumed.run(TRAIN, VALID))
    assert_same_bits(resumed, arrays(whole))

"""Small runs to interrupt and to go on with: the tests of resuming share them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from metal_candle import Device
from metal_candle.models import load_model
from metal_candle.nn import ParamsAdamW
from metal_candle.training import (
    AdapterTrainer,
    LoRAAdapter,
    LoRAAdapterConfig,
    LRScheduler,
    TargetModule,
    TrainingCallback,
    TrainingConfig,
)
from metal_candle.training.data import Example

import numpy as np

TARGETS = (TargetModule.QProj, TargetModule.DownProj)
CONFIG = TrainingConfig(
    num_epochs=2,
    lr_scheduler=LRScheduler.warmup_cosine(2, 7, 1e-2, 1e-3),
    optimizer_config=ParamsAdamW(lr=1e-2),
    batch_size=2,
    accumulation_steps=2,
    eval_every=2,
    seed=5,
)
STEPS = 6


def examples(count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    rows = []
    for line in range(count):
        tokens = rng.integers(3, 64, int(rng.integers(6, 30))).tolist()
        rows.append(Example(tokens, [i > 1 for i in range(len(tokens))], Path("made.jsonl"), line + 1))
    return rows


TRAIN, VALID = examples(10), examples(3, 1)


Whole = tuple[list[tuple[str, int, float]], dict[str, np.ndarray[Any, Any]]]


def fresh(
    folder: Path, callbacks: list[TrainingCallback] | None = None, config: TrainingConfig = CONFIG, dropout: float = 0.3
) -> AdapterTrainer:
    Device.default().set_seed(3)
    model = load_model(folder).model
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(2, 4.0, dropout, TARGETS))
    return AdapterTrainer(model, adapter, config, 2, callbacks or [])


def arrays(trainer: AdapterTrainer) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.array(array) for name, array in trainer.state().arrays.items()}


def assert_same_bits(trainer: AdapterTrainer, expected: dict[str, np.ndarray[Any, Any]]) -> None:
    found = arrays(trainer)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


def told(events: Any) -> list[tuple[str, int, float]]:
    return [(type(event).__name__, event.step, event.loss) for event in events]


def ended(folder: Path) -> Whole:
    """What an uninterrupted run tells, and where it ends."""
    trainer = fresh(folder)
    return told(trainer.run(TRAIN, VALID)), arrays(trainer)


def saved_run(folder: Path, path: Path) -> Path:
    """The state after one update."""
    trainer = fresh(folder, config=replace(CONFIG, max_steps=1))
    list(trainer.run(TRAIN, VALID))
    trainer.save_state(path)
    return path

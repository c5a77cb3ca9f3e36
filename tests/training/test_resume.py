"""Exact resume: a run that goes on ends bit for bit like one that was never interrupted."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from metal_candle import Device, TrainingError
from metal_candle.models import load_model
from metal_candle.training import (
    AdamWConfig,
    AdapterTrainer,
    EarlyStopping,
    LRScheduler,
    MetricsLog,
    SaveState,
    TrainingConfig,
    TrainingState,
)

import numpy as np
import pytest
from resumed_runs import CONFIG, STEPS, TRAIN, VALID, Whole, arrays, assert_same_bits, fresh, told


@pytest.mark.parametrize("stop", [0, 1, 2, 3, STEPS])
def test_a_run_goes_on_bit_for_bit(folder: Path, whole: Whole, tmp_path: Path, stop: int) -> None:
    """Stopped before the first step, between a step and its evaluation, in the middle and at the end of an epoch."""
    trainer = fresh(folder)
    events = trainer.run(TRAIN, VALID)
    before = []
    for event in events:
        before.append(event)
        if trainer.step == stop:
            break
    events.close()  # type: ignore[attr-defined]
    trainer.save_state(tmp_path / "state")
    Device.default().set_seed(99)
    resumed = AdapterTrainer.resume(tmp_path / "state", load_model(folder).model)
    assert resumed.step == stop
    assert told(before) + told(resumed.run(TRAIN, VALID)) == whole[0]
    assert_same_bits(resumed, whole[1])


def test_a_run_goes_on_in_another_thread(folder: Path, whole: Whole) -> None:
    """Each thread has a random generator of its own; the one that trains goes on from the state's."""
    trainer = fresh(folder)
    events = trainer.run(TRAIN, VALID)
    while trainer.step < 2:
        next(events)
    events.close()  # type: ignore[attr-defined]
    resumed = AdapterTrainer.resume(trainer.state(), load_model(folder).model)
    Device.default().set_seed(99)
    thread = threading.Thread(target=lambda: list(resumed.run(TRAIN, VALID)))
    thread.start()
    thread.join()
    assert resumed.step == STEPS
    found = arrays(resumed)
    assert [name for name in found if name != "random.key" and not np.array_equal(found[name], whole[1][name])] == []


def test_saving_changes_nothing_and_a_state_is_a_moment(folder: Path, whole: Whole, tmp_path: Path) -> None:
    trainer = fresh(
        folder, [MetricsLog(tmp_path / "m.jsonl"), SaveState(tmp_path / "state", every=1, adapter=tmp_path)]
    )
    early: list[TrainingState] = []
    for _ in trainer.run(TRAIN, VALID):
        if trainer.step == 1 and not early:
            early.append(trainer.state())
    assert_same_bits(trainer, whole[1])
    assert early[0].step == 1  # its arrays are those of that time
    trainer.load_state(early[0])
    list(trainer.run(TRAIN, VALID))
    assert_same_bits(trainer, whole[1])


def test_longer_runs_go_on_where_shorter_ones_ended(folder: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, num_epochs=3, eval_every=0)
    long = fresh(folder, config=config)
    list(long.run(TRAIN, VALID))
    short = fresh(folder, config=replace(config, num_epochs=1))
    list(short.run(TRAIN, VALID))
    short.save_state(tmp_path / "state")
    on = AdapterTrainer.resume(tmp_path / "state", load_model(folder).model, num_epochs=3)
    list(on.run(TRAIN, VALID))
    assert on.step == long.step == 9
    assert_same_bits(on, arrays(long))


def test_the_crates_own_configuration_comes_back(folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig(
        num_epochs=1, lr_scheduler=LRScheduler.linear(3, 1e-3), optimizer_config=AdamWConfig(beta1=0.8)
    )
    trainer = fresh(folder, config=config)
    trainer.save_state(tmp_path / "state")
    on = AdapterTrainer.resume(tmp_path / "state", load_model(folder).model, cache_limit=10**8)
    # as the optimizer takes it
    assert on.config == replace(config, cache_limit=10**8, optimizer_config=config.optimizer_params())

    class Own(LRScheduler):
        def get_lr(self, step: int) -> float:
            return 1e-3

    owned = replace(config, lr_scheduler=Own())
    fresh(folder, config=owned).save_state(tmp_path / "own")
    with pytest.raises(TrainingError.StateError, match="the run's schedule is a Own, which the file cannot make"):
        AdapterTrainer.resume(tmp_path / "own", load_model(folder).model)
    fresh(folder, config=owned).load_state(tmp_path / "own")


def test_a_state_that_is_saved_before_the_run_goes_on(folder: Path, tmp_path: Path) -> None:
    """It still knows its data, and what the callbacks said of themselves."""
    config = replace(CONFIG, eval_every=1)
    trainer = fresh(folder, [EarlyStopping(patience=9)], config)
    next(trainer.run(TRAIN, VALID))
    first = trainer.state()
    assert first.callbacks
    again = AdapterTrainer.resume(first, load_model(folder).model, [EarlyStopping(patience=9)]).state()
    assert (again.callbacks, again.data) == (first.callbacks, first.data)

"""What survives NaN, an interrupt, an error of a callback and a full disk: the last good state."""

from __future__ import annotations

import errno
import gc
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import CheckpointError, Tensor, TrainingError
from metal_candle.formats import safetensors
from metal_candle.models import load_model
from metal_candle.training import (
    AdapterTrainer,
    LoRAAdapter,
    MetricsLog,
    SaveState,
    TrainingCallback,
    TrainingState,
    read_metrics,
)
from metal_candle.training import trainer as trainer_module
from metal_candle.training.events import StepMetrics
from metal_candle.training.interruption import Undone

import mlx.core as mx
import numpy as np
import pytest
from resumed_runs import TRAIN, VALID, Whole, assert_same_bits, fresh, told


class Poison(TrainingCallback):
    """Makes the weights NaN after a step."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, trainer: Any) -> bool | None:
        if trainer.step == self.after:
            for var in trainer.adapter.trainable_variables():
                var.set(Tensor.full(float("nan"), var.shape))
        return None


@pytest.mark.parametrize(("after", "kept"), [(2, 2), (3, 2)])
def test_nan_leaves_the_last_good_checkpoint(folder: Path, whole: Whole, tmp_path: Path, after: int, kept: int) -> None:
    """A state is written when its weights are known to be good: at step 2 by the evaluation, at step 3 not at all."""
    path = tmp_path / "state"
    trainer = fresh(folder, [SaveState(path, every=1, adapter=tmp_path / "adapter"), Poison(after)])
    with pytest.raises(TrainingError.Failed, match=f"loss is nan at step {after + 1}"):
        list(trainer.run(TRAIN, VALID))
    assert TrainingState.load(path).step == kept
    adapter = LoRAAdapter.load(tmp_path / "adapter", load_model(folder).model)
    assert all(np.isfinite(var.numpy()).all() for var in adapter.trainable_variables())
    on = AdapterTrainer.resume(path, load_model(folder).model)
    list(on.run(TRAIN, VALID))
    assert_same_bits(on, whole[1])


def test_a_held_out_loss_that_is_not_finite_is_not_saved(folder: Path, tmp_path: Path) -> None:
    class PoisonBefore(TrainingCallback):
        def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
            if metrics.step == 2:
                for var in trainer.adapter.trainable_variables():
                    var.set(Tensor.full(float("nan"), var.shape))
            return None

    trainer = fresh(folder, [PoisonBefore(), SaveState(tmp_path / "state", every=1)])
    with pytest.raises(TrainingError.Failed, match="held-out loss is nan after step 2"):
        list(trainer.run(TRAIN, VALID))
    assert TrainingState.load(tmp_path / "state").step == 1


def interrupting(trainer: AdapterTrainer, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a KeyboardInterrupt come in the middle of a step, when variables are set already."""
    make = trainer.update.make

    def interrupted(group: Any, total: int) -> tuple[float, float]:
        result = make(group, total)
        if trainer.step + 1 == step:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(trainer.update, "make", interrupted)


def test_an_interrupt_in_a_step_takes_all_of_it_back(
    folder: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks: list[TrainingCallback] = [MetricsLog(tmp_path / "m.jsonl"), SaveState(tmp_path / "state")]
    trainer = fresh(folder, callbacks)
    interrupting(trainer, 4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        list(trainer.run(TRAIN, VALID))
    assert TrainingState.load(tmp_path / "state").step == trainer.step == 3
    log = MetricsLog(tmp_path / "m.jsonl", append=True)
    on = AdapterTrainer.resume(tmp_path / "state", load_model(folder).model, [log])
    list(on.run(TRAIN, VALID))
    assert_same_bits(on, whole[1])
    assert [record["step"] for record in read_metrics(tmp_path / "m.jsonl") if "loss" in record] == [1, 2, 3, 4, 5, 6]


def test_a_second_interrupt_waits_until_the_step_is_taken_back(
    folder: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = fresh(folder)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    make, restore, pressed = trainer.update.make, trainer_module.set_random_key, []

    def press(times: int) -> None:
        if len(pressed) < times:
            pressed.append(trainer.step)
            signal.raise_signal(signal.SIGINT)

    def pressed_in_the_step(group: Any, total: int) -> tuple[float, float]:
        result = make(group, total)
        if trainer.step == 3:
            press(1)
        return result

    def pressed_again(key: Any) -> None:
        press(3)
        restore(key)
        press(3)

    monkeypatch.setattr(trainer.update, "make", pressed_in_the_step)
    monkeypatch.setattr(trainer_module, "set_random_key", pressed_again)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(trainer.run(TRAIN, VALID))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(pressed) == 3
    assert trainer.step == 3
    told(trainer.run(TRAIN, VALID))
    assert_same_bits(trainer, whole[1])


def test_an_interrupt_while_an_error_is_taken_back_is_told_afterwards() -> None:
    done: list[str] = []

    def undo() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("undone")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught, Undone(undo):
            raise ValueError("why")
        assert isinstance(caught.value.__context__, ValueError)
        assert done == ["undone"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with Undone(undo):
            pass
        assert done == ["undone"]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("call", range(4))
def test_an_interrupt_at_the_edge_of_a_block(call: int, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each of the calls that set another handler: the former one is back, and no change is left half made."""
    done: list[str] = []
    calls: list[str] = []

    def pressing(name: str) -> Any:
        real = getattr(signal, name)

        def called(*given: Any) -> Any:
            found = real(*given)
            calls.append(name)
            if len(calls) == call + 1:
                signal.raise_signal(signal.SIGINT)
            return found

        return called

    def block() -> None:
        with Undone(lambda: done.append("undone")):
            done.append("begun")
            if fails:
                raise ValueError("why")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            for name in ("getsignal", "signal"):
                patch.setattr(signal, name, pressing(name))
            with pytest.raises(KeyboardInterrupt):
                block()
        assert len(calls) == (1 if call == 0 else 4)  # before the first handler is set nothing has begun
        assert done == ([] if call == 0 else ["begun", "undone"] if fails else ["begun"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_could_be_taken_back_is_let_go_at_the_end() -> None:
    undo = lambda: None  # noqa: E731
    kept = weakref.ref(undo)
    gc.collect()
    gc.disable()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Undone(undo):
            pass
        del undo
        assert kept() is None
    finally:
        signal.signal(signal.SIGINT, before)
        gc.enable()


def test_an_interrupt_between_the_first_batches_that_are_summed(
    folder: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first of them left in the sums goes, too."""
    trainer = fresh(folder)
    add, calls = trainer.update._add, []

    def interrupted(*tensors: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return add(*tensors)  # type: ignore[no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(trainer.update, "_add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(trainer.run(TRAIN, VALID))
    assert trainer.step == 0
    list(trainer.run(TRAIN, VALID))
    assert_same_bits(trainer, whole[1])


def test_an_error_of_a_callback_takes_back_the_step(folder: Path, whole: Whole, tmp_path: Path) -> None:
    class Careless(TrainingCallback):
        def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
            if metrics.step == 3:
                raise ValueError("mine")
            return None

    log = MetricsLog(tmp_path / "m.jsonl")
    trainer = fresh(folder, [log, Careless(), SaveState(tmp_path / "state")])
    with pytest.raises(ValueError, match="mine"):
        list(trainer.run(TRAIN, VALID))
    on = AdapterTrainer.resume(
        tmp_path / "state", load_model(folder).model, [MetricsLog(tmp_path / "m.jsonl", append=True)]
    )
    assert on.step == 2
    list(on.run(TRAIN, VALID))
    assert_same_bits(on, whole[1])
    assert [record["step"] for record in read_metrics(tmp_path / "m.jsonl") if "loss" in record] == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that lets the disk be full from the n-th write of tensors on; 0 frees it."""
    left = [0]
    write = safetensors.to_bytes

    def limited(array: mx.array) -> memoryview:
        if left[0]:
            left[0] -= 1
            if not left[0]:
                left[0] = 1
                raise OSError(errno.ENOSPC, "No space left on device")
        return write(array)

    def fill(after: int) -> None:
        left[0] = after

    monkeypatch.setattr(safetensors, "to_bytes", limited)
    return fill


@pytest.mark.parametrize("writes", [1, 2, 9, 14])
def test_a_full_disk_leaves_the_last_checkpoint(
    folder: Path, whole: Whole, tmp_path: Path, full_disk: Callable[[int], None], writes: int
) -> None:
    path = tmp_path / "state"

    class Fill(TrainingCallback):
        def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
            if metrics.step == 3:
                full_disk(writes)
            return None

    save = SaveState(path, every=2)
    trainer = fresh(folder, [Fill(), save])
    with pytest.raises(CheckpointError.SaveFailed, match="No space left on device; what was there is unchanged"):
        list(trainer.run(TRAIN, VALID))
    assert save.saved_step == TrainingState.load(path).step == 2
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
    full_disk(0)
    on = AdapterTrainer.resume(path, load_model(folder).model)
    list(on.run(TRAIN, VALID))
    assert_same_bits(on, whole[1])

"""Callbacks: when they are called, how they stop a run, what of them survives a resume."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from metal_candle import ArgumentTypeError, Device, TrainingError
from metal_candle.models import load_model
from metal_candle.nn import ParamsAdamW
from metal_candle.training import (
    AdapterTrainer,
    EarlyStopping,
    LoRAAdapter,
    LoRAAdapterConfig,
    LRScheduler,
    ProgressBar,
    SaveBest,
    SaveState,
    TrainingCallback,
    TrainingConfig,
    TrainingState,
)
from metal_candle.training.callbacks import Callbacks
from metal_candle.training.data import Example
from metal_candle.training.events import EvalMetrics, StepMetrics

import numpy as np
import pytest


def examples(count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(3, 64, 8).tolist() for _ in range(count)]
    return [Example(row, [i > 1 for i in range(8)], Path("made.jsonl"), n + 1) for n, row in enumerate(rows)]


def trainer_of(folder: Path, *callbacks: TrainingCallback, **settings: Any) -> AdapterTrainer:
    Device.default().set_seed(3)  # which step is the best one depends on the adapter that is drawn
    model = load_model(folder).model
    values: dict[str, Any] = {
        "num_epochs": 2,
        "batch_size": 2,
        "lr_scheduler": LRScheduler.constant(1e-2),
        "optimizer_config": ParamsAdamW(lr=1e-2),
        "eval_every": 2,
    }
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(2, 4.0))
    return AdapterTrainer(model, adapter, TrainingConfig(**{**values, **settings}), 2, callbacks)


class Recorder(TrainingCallback):
    def __init__(self, stop_at: str = "") -> None:
        self.heard: list[str] = []
        self.stop_at = stop_at

    def _note(self, text: str) -> bool | None:
        self.heard.append(text)
        return False if text == self.stop_at else None

    def on_start(self, trainer: Any, total_steps: int) -> bool | None:
        return self._note(f"start of {total_steps}")

    def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
        assert metrics.step == trainer.step
        return self._note(f"step {metrics.step}")

    def on_evaluate(self, trainer: Any, metrics: EvalMetrics) -> bool | None:
        return self._note(f"evaluation {metrics.step}")

    def on_step_end(self, trainer: Any) -> bool | None:
        return self._note(f"end of step {trainer.step}")

    def on_save(self, trainer: Any, path: Path) -> bool | None:
        return self._note(f"saved {path.name}")

    def on_end(self, trainer: Any, error: BaseException | None) -> None:
        self._note(f"end: {error!r}")


def test_the_order_of_events(folder: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    list(
        trainer_of(folder, recorder, SaveState(tmp_path / "s", every=2), num_epochs=1).run(examples(6), examples(2, 1))
    )
    assert recorder.heard == [
        "start of 3", "evaluation 0", "end of step 0", "saved s", "step 1", "end of step 1", "step 2", "evaluation 2",
        "end of step 2", "saved s", "step 3", "end of step 3", "evaluation 3", "end: None", "saved s",
    ]  # fmt: skip


@pytest.mark.parametrize("stop", ["start of 6", "evaluation 0", "step 1", "evaluation 2", "end of step 2", "saved s"])
def test_false_stops_the_run_and_running_again_goes_on(folder: Path, tmp_path: Path, stop: str) -> None:
    first, second = Recorder(stop), Recorder()
    trainer = trainer_of(folder, first, second, SaveState(tmp_path / "s", every=2))
    list(trainer.run(examples(6), examples(2, 1)))
    assert first.heard == second.heard  # everyone hears of the event
    assert first.heard[-2:] == ["end: None", "saved s"] or first.heard[-1] == "end: None"
    made = trainer.step
    assert made == {"start of 6": 0, "evaluation 0": 0, "saved s": 0, "step 1": 1}.get(stop, 2)
    first.stop_at = ""
    first.heard.clear()
    list(trainer.run(examples(6), examples(2, 1)))
    assert trainer.step == 6
    assert f"step {made + 1}" in first.heard
    assert f"step {made}" not in first.heard


def test_every_callback_hears_the_end_whatever_happens(folder: Path) -> None:
    class Broken(TrainingCallback):
        def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
            raise ValueError("in a step")

        def on_end(self, trainer: Any, error: BaseException | None) -> None:
            raise OSError("at the end")

    recorder = Recorder()
    trainer = trainer_of(folder, Broken(), recorder)
    with pytest.raises(OSError, match="at the end") as raised:
        list(trainer.run(examples(6)))
    assert "in a step" in str(raised.value.__context__)
    assert recorder.heard[-1] == "end: ValueError('in a step')"
    assert trainer.step == 0  # the step that its callback could not take is taken back


def test_leaving_the_loop_ends_the_run(folder: Path) -> None:
    recorder = Recorder()
    for event in trainer_of(folder, recorder).run(examples(6)):
        if event.step == 2:
            break
    assert recorder.heard[-1] == "end: None"


def losses(stopping: EarlyStopping, values: list[float]) -> int | None:
    """The step after which it stops."""
    stopping.on_start(SimpleNamespace(step=0), 100)
    for step, value in enumerate(values):
        if stopping.on_evaluate(None, EvalMetrics(value, step, 1, 0.0)) is False:
            return step
    return None


def test_early_stopping() -> None:
    assert losses(EarlyStopping(2), [3, 2, 2.5, 1.9, 2, 2]) == 5
    assert losses(EarlyStopping(2, min_delta=0.5), [3, 2.9, 2.6, 2]) == 2
    assert losses(EarlyStopping(1), [3, 2, 1]) is None
    stopping = EarlyStopping(2)
    assert losses(stopping, [3, 2, 4, 4]) == 3
    assert (stopping.best, stopping.best_step) == (2, 1)
    assert losses(stopping, [9, 8]) is None  # a new run has nothing to beat
    for settings in ({"patience": 0}, {"min_delta": -1.0}):
        with pytest.raises(TrainingError.InvalidConfig, match="takes at least"):
            EarlyStopping(**settings)  # type: ignore[arg-type]


def test_early_stopping_goes_on_waiting_after_a_resume() -> None:
    stopping, again = EarlyStopping(3), EarlyStopping(3)
    assert losses(stopping, [2, 3, 3]) is None
    trainer = SimpleNamespace(step=2)
    again.on_resume(trainer, stopping.state())
    again.on_start(trainer, 100)
    assert again.on_evaluate(trainer, EvalMetrics(3, 2, 1, 0.0)) is True  # one that was counted comes again
    assert again.on_evaluate(trainer, EvalMetrics(3, 3, 1, 0.0)) is False
    assert (again.best, again.best_step) == (2, 0)


def test_the_best_adapter_is_kept(folder: Path, tmp_path: Path) -> None:
    best = SaveBest(tmp_path / "best", "tiny")
    recorder: list[float] = []
    trainer = trainer_of(folder, best, num_epochs=6, lr_scheduler=LRScheduler.constant(0.3), eval_every=1)
    weights: dict[int, Any] = {}
    for event in trainer.run(examples(6), examples(2, 1)):
        if isinstance(event, EvalMetrics) and event.step:
            recorder.append(event.loss)
            weights[event.step] = [var.numpy() for var in trainer.adapter.trainable_variables()]
    assert best.best == min(recorder)
    assert best.best_step == recorder.index(min(recorder)) + 1 < trainer.step
    kept = LoRAAdapter.load(tmp_path / "best", load_model(folder).model)
    for found, expected in zip(kept.trainable_variables(), weights[best.best_step]):
        assert np.array_equal(found.numpy(), expected)


def test_what_is_no_callback_is_refused(folder: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="takes TrainingCallback objects"):
        trainer_of(folder, print)  # type: ignore[arg-type]
    with pytest.raises(TrainingError.InvalidConfig, match="every is -1; takes at least 0"):
        SaveState("state", every=-1)


def test_two_of_a_kind_keep_their_own_state() -> None:
    def two() -> tuple[EarlyStopping, EarlyStopping]:
        return EarlyStopping(3), EarlyStopping(5)

    first, second = two()
    losses(first, [2, 3])
    losses(second, [4, 5, 6])
    states = Callbacks([first, Recorder(), second]).states()
    assert list(states) == ["EarlyStopping", "EarlyStopping.1"]
    third, fourth = two()
    Callbacks([third, fourth]).resume(SimpleNamespace(step=1), states)
    assert (third.best, fourth.best) == (2, 4)


def test_progress_without_a_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list(trainer_of(folder, ProgressBar(), num_epochs=1).run(examples(6), examples(2, 1)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("held-out loss ")
    assert lines[1].startswith("step 1/3  loss ")
    assert lines[-2].endswith("finishing")


def test_an_interrupt_between_state_and_adapter_leaves_both_at_the_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = SaveState(tmp_path / "state", every=1, adapter=tmp_path)
    trainer = trainer_of(folder, save, num_epochs=1)
    write, interrupts = SaveState._write_adapter, [KeyboardInterrupt()]

    def interrupted(*arguments: Any) -> None:
        if interrupts and trainer.step:
            raise interrupts.pop()
        write(*arguments)

    monkeypatch.setattr(SaveState, "_write_adapter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(trainer.run(examples(6)))
    assert not interrupts
    kept = TrainingState.load(tmp_path / "state")
    assert kept.step == trainer.step > 0
    adapter = LoRAAdapter.load(tmp_path, trainer.model)
    for (_, layer), (_, own) in zip(adapter.layers(), trainer.adapter.layers()):
        assert np.array_equal(layer.lora_b().numpy(), own.lora_b().numpy())

"""An evaluation that a callback, or Ctrl-C on the command line, ends between two of its batches."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from metal_candle.cli.training_run import run
from metal_candle.training import AdapterTrainer, SaveState, TrainingCallback
from metal_candle.training.position import Position

import pytest
from resumed_runs import CONFIG, STEPS, TRAIN, VALID, Whole, assert_same_bits, fresh, told

NOTHING_SHOWN: Callable[[Any], None] = lambda trainer: None  # noqa: E731
BATCHES = 3
EVALUATED = replace(CONFIG, batch_size=1)


class StopAfter(TrainingCallback):
    """Ends an evaluation of ``at`` updates after so many of its batches."""

    def __init__(self, at: int, batches: int, by: Callable[[], bool]) -> None:
        self.at, self.batches, self.by = at, batches, by
        self.seen: list[tuple[int, int, int]] = []

    def on_evaluation_batch(self, trainer: Any, done: int, total: int) -> bool | None:
        self.seen.append((trainer.step, done, total))
        return self.by() if (trainer.step, done) == (self.at, self.batches) else None


def asks() -> bool:
    return False


def test_each_batch_of_an_evaluation_is_told(folder: Path) -> None:
    heard = StopAfter(-1, 0, asks)
    list(fresh(folder, [heard], replace(EVALUATED, max_steps=1)).run(TRAIN, VALID))
    assert heard.seen == [(step, done, BATCHES) for step, done in itertools.product((0, 1), range(1, BATCHES + 1))]


@pytest.mark.parametrize("step", [0, 2, STEPS], ids=["before the first step", "in between", "at the end"])
def test_a_run_that_is_stopped_in_an_evaluation_goes_on_with_it(
    folder: Path, whole: Whole, tmp_path: Path, step: int
) -> None:
    path = tmp_path / "state"
    stop = StopAfter(step, 1, asks)
    first = fresh(folder, [stop, SaveState(path)])
    events = told(first.run(TRAIN, VALID))
    assert stop.seen[-1] == (step, 1, 2), "no batch came after it"
    assert first.step == step
    assert first.position.evaluated == (max(step - 2, 0) if step else Position().evaluated)
    going_on = AdapterTrainer.resume(path, fresh(folder).model)
    expected, arrays = whole
    assert events + told(going_on.run(TRAIN, VALID)) == expected
    assert_same_bits(going_on, arrays)


def test_control_c_in_the_first_evaluation_stops_after_its_batch(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def made(callbacks: list[TrainingCallback]) -> AdapterTrainer:
        trainer = fresh(folder, callbacks, EVALUATED)
        loss = trainer.update.batch_loss

        def interrupted(*arguments: Any) -> float:
            seen.append(len(seen))
            signal.raise_signal(signal.SIGINT)
            return loss(*arguments)

        monkeypatch.setattr(trainer.update, "batch_loss", interrupted)
        return trainer

    output = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer, outcome = run(
            made, TRAIN, VALID, output, base="tiny", save_every=0, flags={}, announce=NOTHING_SHOWN
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [0], "the batch that ran is the only one"
    assert outcome.interrupted
    assert (trainer.step, outcome.saved, outcome.records) == (0, 0, [])
    assert sorted(path.name for path in output.iterdir()) == ["metrics.jsonl", "training.state"]
    assert "once more to stop at once" in capsys.readouterr().err

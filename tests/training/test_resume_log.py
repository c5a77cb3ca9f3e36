"""The record of a run that goes on: each step is there once."""

from __future__ import annotations

import json
from pathlib import Path

from metal_candle.models import load_model
from metal_candle.training import AdapterTrainer, MetricsLog, read_metrics

import pytest
from resumed_runs import TRAIN, VALID


def test_the_log_is_cut_where_the_state_was_saved(folder: Path, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 0, "held_out_loss": 4.0}, {"step": 1, "loss": 4.0}, {"step": 1, "held_out_loss": 3.9}]
    later = [{"step": 2, "loss": 3.0}, {"step": 2, "held_out_loss": 3.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines + later) + '{"step": 3, "lo')
    trainer = AdapterTrainer.resume(saved, load_model(folder).model, [MetricsLog(path, append=True)])
    list(trainer.run(TRAIN, VALID))
    assert read_metrics(path) == lines


def test_a_log_that_lacks_steps_says_so(folder: Path, saved: Path, tmp_path: Path) -> None:
    trainer = AdapterTrainer.resume(saved, load_model(folder).model, [MetricsLog(tmp_path / "new.jsonl")])
    with pytest.warns(UserWarning, match="no record of step 1, which the resumed run made"):
        list(trainer.run(TRAIN, VALID))

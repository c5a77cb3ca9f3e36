"""The metrics file: written through at once, read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

from metal_candle.error import CheckpointError
from metal_candle.training.metrics import MetricsLog, read_metrics

import pytest


def test_each_record_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1, "loss": 2.5, "note": "é"})
        assert path.read_text(encoding="utf-8") == '{"step": 1, "loss": 2.5, "note": "é"}\n'
        log.write({"step": 2, "loss": math.nan})
    assert read_metrics(path) == [{"step": 1, "loss": 2.5, "note": "é"}, {"step": 2, "loss": None}]
    with MetricsLog(path, append=True) as log:
        log.write({"step": 3, "held_out_loss": 2})
    assert len(read_metrics(path)) == 3
    with MetricsLog(path):
        pass
    assert read_metrics(path) == []


def test_a_line_cut_short_at_the_end_is_left_out_but_not_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(CheckpointError.LoadFailed, match=r"metrics\.jsonl:2: broken JSON"):
        read_metrics(path)
    with pytest.raises(CheckpointError.LoadFailed, match="gone"):
        read_metrics(tmp_path / "gone")


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError.SaveFailed, match="file"):
        MetricsLog(tmp_path / "file" / "metrics.jsonl")
    with pytest.raises(CheckpointError.SaveFailed, match=str(tmp_path)):
        MetricsLog(tmp_path)


def test_records_are_json_for_others(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.jsonl") as log:
        log.write({"step": 1, "loss": math.inf})
    record = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=pytest.fail)
    assert record == {"step": 1, "loss": None}

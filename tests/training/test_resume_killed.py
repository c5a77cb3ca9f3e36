"""A run killed a hundred times ends bit for bit like one that was never interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

IN_SAVES, AT_RANDOM = 62, 40


@pytest.mark.slow
def test_a_run_killed_a_hundred_times_ends_like_an_uninterrupted_one(
    tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    """Dropout, accumulation, three shuffled epochs, a warm-up and a cosine, evaluations, early stopping; compared are
    the bytes of state and adapter (weights, moments, counts, random key, position) and the metrics."""
    model = tiny_model_dir(num_hidden_layers=1, hidden_size=16, intermediate_size=32)
    command = [sys.executable, Path(__file__).with_name("killed_runs.py"), model, tmp_path, IN_SAVES, AT_RANDOM]
    # The passes' own checks belong to other tests.
    environment = {**os.environ, "METAL_CANDLE_CHECK": "0", "OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, timeout=600)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["different"] == []
    assert report["kills"] >= 100
    assert report["finished"] >= 3
    assert report["steps"] == 9
    assert report["points"].keys() >= {"open", "write", "before fsync", "after fsync", "os.rename", "at random"}
    left = [path.name for path in tmp_path.rglob(".*")]
    assert left == [], "what interrupted saves left is removed by the next run"

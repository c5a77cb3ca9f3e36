"""``benchmarks/generation.py``, ``adapters.py`` and ``embeddings.py`` in their shortest form: what they compare agrees,
and every case has its row. Other libraries' sides take part where they are installed. No times are judged.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
MLX_LM = find_spec("mlx_lm") is not None
TORCH = find_spec("torch") is not None and find_spec("transformers") is not None


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # One BLAS thread: several wait for each other where other programs have the cores.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, FOLDER / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def rows(script: str, tmp_path: Path, *arguments: str | Path) -> dict[str, list[str]]:
    """The sides of each case, as they are in the file of rows and in the table."""
    file = tmp_path / "results.csv"
    result = run(script, "--rounds", "2", "--csv", file, *arguments)
    assert result.returncode == 0, result.stderr
    found: dict[str, list[str]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            assert float(row["p20_us"]) <= float(row["median_us"]) <= float(row["p80_us"])
            assert float(row["median_us"]) > 0
            assert row["benchmark"] == script.removesuffix(".py")
            found.setdefault(row["case"], []).append(row["side"])
    told = [line.split(" | ")[:2] for line in result.stdout.splitlines() if line.startswith("| ")][2:]
    assert [(case.removeprefix("| "), side) for case, side in told] == [
        (case, side) for case, sides in found.items() for side in sides
    ]
    everything = TORCH if script == "embeddings.py" else MLX_LM and (TORCH or script == "adapters.py")
    assert ("not installed, left out" in result.stdout) is not everything
    return found


@pytest.mark.slow
def test_generation(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model_dir(max_position_embeddings=1024)
    found = rows("generation.py", tmp_path, "--model", model)
    assert len(found) == 2 * 3 + 2 + 2
    for case, sides in found.items():
        others = ["metal-candle, one by one"] * case.startswith("batch") + ["mlx-lm"] * MLX_LM
        others += ["transformers"] * (TORCH and "4-bit" not in case)
        others += ["mlx-lm as installed"] * (MLX_LM and case.startswith("prompt of 34"))
        assert sides == ["metal-candle", *others], case


@pytest.mark.slow
def test_adapters(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    found = rows("adapters.py", tmp_path, "--model", tiny_model_dir())
    switch, forward, apply, batch = found.values()
    registered = ["1 registered", "8 registered", "64 registered"]
    assert switch == [*registered, *["mlx-lm, update"] * MLX_LM]
    assert forward == [*registered, "no switch", *["mlx-lm, update"] * MLX_LM]
    assert apply == ["activate", "read a file and apply", "merge into a copy", *["mlx-lm, read a file"] * MLX_LM]
    theirs = ["mlx-lm, 1 adapter", "mlx-lm, a batch for each adapter"] if MLX_LM else []
    own = ["4 adapters", "1 adapter", "no adapter", "one by one, switching", "a batch for each adapter"]
    assert batch == [*own, *theirs]


@pytest.mark.slow
def test_embeddings(tmp_path: Path) -> None:
    found = rows("embeddings.py", tmp_path, "--only", "short")
    assert found == {"1 short sentence": ["metal-candle", *["transformers"] * TORCH]}


@pytest.mark.parametrize("script", ["generation.py", "adapters.py", "embeddings.py"])
def test_rounds_below_one_are_refused(script: str) -> None:
    result = run(script, "--rounds", "0")
    assert result.returncode == 2
    assert "1 or more" in result.stderr

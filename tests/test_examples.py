"""The scripts of ``examples/`` run, each as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_finetune_lora(tmp_path: Path) -> None:
    script = EXAMPLES / "finetune_lora.py"
    assert len(script.read_text().splitlines()) < 60
    result = subprocess.run([sys.executable, script, "3"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    losses = [float(line.split()[-1]) for line in result.stdout.splitlines() if "held-out loss" in line]
    assert losses[-1] < losses[0]
    assert (tmp_path / "runs/field-guide/adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_tensors(tmp_path: Path) -> None:
    script = EXAMPLES / "tensors.py"
    result = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "mul: got shapes (3, 4) and (4,); takes equal shapes; broadcast_mul broadcasts" in result.stdout
    assert "[ 0.,  0.,  0., -1.]" in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_lazy_graph(tmp_path: Path) -> None:
    script = EXAMPLES / "lazy_graph.py"
    command = [sys.executable, script, "--svg", "graph.svg"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    for said in ("add_lora(scale=2.0) <-", "stays: somebody holds its value", "traced because x is [1, 64] f32"):
        assert said in result.stdout
    assert "  rewritten: lora x 1, add_lora x 1" in result.stdout
    assert (tmp_path / "graph.svg").read_text().startswith("<svg ")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "aim"), [("mlp", 97.0), ("cnn", 98.0)])
def test_digits(tmp_path: Path, model: str, aim: float) -> None:
    def run(*flags: str) -> list[str]:
        command = [sys.executable, EXAMPLES / "digits.py", model, *flags]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    def accuracy(lines: list[str]) -> float:
        return float(next(line for line in reversed(lines) if "test acc" in line).split()[-1].rstrip("%"))

    assert accuracy(run("--save", "weights.safetensors")) > aim
    # What was saved is what goes on: one more epoch, hardly any change.
    assert accuracy(run("--load", "weights.safetensors", "--epochs", "1", "--learning-rate", "0")) > aim


def test_digits_without_a_file_to_load(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "digits.py", "mlp", "--load", tmp_path / "none.safetensors"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1

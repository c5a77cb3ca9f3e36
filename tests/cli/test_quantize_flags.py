"""--quantize on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from program import FAILED, ok, run


@pytest.fixture(scope="module")
def model(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir()


def test_finetune_and_generate_on_a_quantised_base(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "a cat", "completion": f"the mat {i}"}) + "\n" for i in range(4)))
    output, config = tmp_path / "adapter", tmp_path / "config.yaml"
    config.write_text("quantize: 4\ngroup-size: 32\nquantize-embeddings: true\n")
    given = ("finetune", "--config", config, "--model", model, "--data", rows, "--output", output, "--steps", 2)
    result = run(*given, "--sample", "")
    assert result.returncode == 0, result.stderr
    assert "15 weights in 4 bits (groups of 32)" in result.stderr
    text = ok("generate", "--adapter", output, "--quantize", 8, "--group-size", 32, "--max-tokens", 3, "--raw", "the")
    assert text.strip()


def test_inspect_says_how_weights_are_held(model: Path, smollm2_gguf: Path) -> None:
    assert "quantised      no" in ok("inspect", "model", model)
    line = "quantised      in the file (210 x Q4_1, 1 x Q8_0), here widened to f32; --quantize keep keeps it"
    assert line in ok("inspect", "model", smollm2_gguf)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--quantize", "nf4"), "quantize is 'nf4'; takes 4, 8 (or 2, 3, 5, 6), keep or dense"),
        (("--group-size", "32"), "group_size is for weights that are quantised while loading; takes it with quantize"),
    ],
)
def test_wishes_that_make_no_sense(model: Path, flags: tuple[str, ...], words: str) -> None:
    result = run("generate", "--model", model, *flags, "--raw", "the")
    assert result.returncode == FAILED
    assert words in result.stderr
    assert "Traceback" not in result.stderr

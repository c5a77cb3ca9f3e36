"""Text that is not the terminal's: bytes that are no UTF-8, an output that lacks our characters, warnings as lines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from program import COMMAND, ENVIRONMENT, FAILED, OK, run, trained

Folder = Callable[..., Path]


def written(path: Path) -> Path:
    rows = [{"prompt": "name a tool", "completion": f"tool number {i}"} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_prompt_of_other_bytes_is_refused() -> None:
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "utf-8"}  # strict, as in most locales
    result = subprocess.run([*COMMAND, "generate"], input=b"caf\xe9\n", capture_output=True, env=environment)
    line = b"error: generation configuration: standard input is not UTF-8: byte 0xe9 at position 4"
    assert (result.returncode, result.stderr.strip()) == (FAILED, line)


def test_an_output_without_our_characters_takes_others(tmp_path: Path, tiny_model_dir: Folder) -> None:
    data = written(tmp_path / "rows.jsonl")
    result = run("inspect", "data", data, "--model", tiny_model_dir(), PYTHONIOENCODING="ascii")  # bars: full blocks
    assert (result.returncode, result.stderr) == (OK, "")
    assert "?????" in result.stdout


def test_a_warning_is_a_line(tmp_path: Path, tiny_model_dir: Folder) -> None:
    output = trained(tiny_model_dir(), written(tmp_path / "rows.jsonl"), tmp_path / "out")
    (output / "metrics.jsonl").unlink()
    result = run("finetune", "--resume", output, "--steps", 3)
    line = f"warning: {output / 'metrics.jsonl'}: no record of step 1, which the resumed run made\n"
    assert (result.returncode, result.stderr) == (OK, line)

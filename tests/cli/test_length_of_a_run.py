"""How many updates a run has is said before it, and which flag ends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import Program


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--steps", 60), "1 held out; 3 updates: --epochs 1 ends the run before --steps 60"),
        (("--steps", 4, "--epochs", 2), "1 held out; 4 updates"),
        ((), "1 held out; 3 updates"),
    ],
)
def test_steps_that_the_epochs_do_not_reach_are_said(
    tiny_model_dir: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[object, ...],
    said: str,
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": "yes"}) + "\n" for i in range(10)))
    where = ("--model", tiny_model_dir(), "--data", rows, "--output", tmp_path / "out", "--sample", "")
    shown = Program(capsys, monkeypatch).ok("finetune", *where, *flags)
    assert next(line for line in shown.splitlines() if line.startswith("data")).endswith(said)

"""Ctrl-C outside the steps of a run: it is said, with what is on disk by then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.cli import finetune
from metal_candle.models import load_model
from metal_candle.training import LoRAAdapter

import pytest
from in_process import Program
from program import INTERRUPTED


@pytest.fixture
def run(
    tiny_model_dir: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], tuple[int, str, str]]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": "yes"}) + "\n" for i in range(10)))
    flags = ("--model", tiny_model_dir(), "--data", rows, "--output", tmp_path / "out", "--steps", 2)
    return lambda: Program(capsys, monkeypatch).run("finetune", *flags)


def interrupted_at(call: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let Ctrl-C come in the call of that number, from 1, to a function of the command."""
    function, calls = getattr(finetune, name), []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    monkeypatch.setattr(finetune, name, counted)


@pytest.mark.parametrize("name", ["tokenizer_with_progress", "load_with_progress", "answer"])
def test_before_the_first_step_it_leaves_nothing(
    run: Callable[[], tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    interrupted_at(1, monkeypatch, name)
    code, _, errors = run()
    assert (code, errors.split()) == (INTERRUPTED, ["interrupted"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("call", "name"), [(2, "answer"), (1, "report")])
def test_after_the_last_step_it_says_where_the_adapter_is(
    run: Callable[[], tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, name: str
) -> None:
    interrupted_at(call, monkeypatch, name)
    code, _, errors = run()
    output = tmp_path / "out"
    assert code == INTERRUPTED
    assert [line for line in errors.splitlines() if line] == [f"adapter of all 2 steps in {output}/", "interrupted"]
    base = json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert LoRAAdapter.load(output, load_model(base).model).num_trainable_parameters()

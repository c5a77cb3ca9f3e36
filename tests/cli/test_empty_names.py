"""An empty path or name on the command line is no default, and not the current folder."""

from __future__ import annotations

from pathlib import Path

from metal_candle import Tensor
from metal_candle import safetensors as st

import pytest
from in_process import Program
from program import FAILED


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(capsys, monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "option", "kind"),
    [
        (("finetune", "--steps", 1, "--output"), "--output", "save"),
        (("finetune", "--steps", 1, "--output="), "--output", "save"),
        (("finetune", "--output", "out", "--init-adapter"), "--init-adapter", "load"),
        (("finetune", "--resume"), "--resume", "load"),
        (("finetune", "--config"), "--config", "load"),
        (("merge", "--adapter", "a", "--output"), "--output", "save"),
        (("merge", "--output", "out", "--adapter"), "--adapter", "load"),
        (("convert", "--adapter", "a", "--to", "peft", "--output"), "--output", "save"),
        (("convert", "--output", "out", "--to", "peft", "--adapter"), "--adapter", "load"),
        (("generate", "hello", "--adapter"), "--adapter", "load"),
        (("inspect", "adapter"), "adapter", "load"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    cli: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], option: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    empty = () if str(arguments[-1]).endswith("=") else ("",)
    code, shown, said = cli.run(*arguments, *empty)
    assert (code, shown) == (FAILED, "")
    assert said == f"error: failed to {kind}: {option} is empty; takes a path\n"
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path_of_a_configuration_file(cli: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("output: ''\nsteps: 1\n")
    assert cli.run("finetune", "--config", "run.yaml") == (
        FAILED,
        "",
        "error: failed to save: --output is empty; takes a path\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("finetune", "--output", "out", "--model"), "model file not found: the name is empty; takes a folder"),
        (("generate", "hello", "--model"), "model file not found: the name is empty; takes a folder"),
        (("merge", "--adapter", "a", "--output", "out", "--model"), "model file not found: the name is empty; takes"),
        (("finetune", "--output", "out", "--data"), "'': the name is empty; takes a file, a directory or field-guide"),
        (("inspect", "data"), "'': the name is empty; takes a file, a directory or field-guide"),
    ],
)
def test_an_empty_name_is_not_the_default(
    cli: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if "a" in arguments:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "adapter_config.json").write_text("{}")
        st.save({"base_model.model.x.lora_A.weight": Tensor([[1.0]])}, tmp_path / "a" / "adapter_model.safetensors")
    code, _, said = cli.run(*arguments, "")
    assert code == FAILED
    assert said.startswith(f"error: {words}"), said

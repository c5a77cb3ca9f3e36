"""The commands as a user runs them, on a tiny model."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from metal_candle.models import load_model
from metal_candle.training import LoRAAdapter, TrainingState, read_metrics

import numpy as np
import pytest
from program import COMMAND, ENVIRONMENT, INTERRUPTED, ok, run

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Folder) -> Path:
    return tiny_model_dir(hidden_size=64, head_dim=16)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    answer = {"role": "assistant", "content": "the answer"}
    lines = [json.dumps({"messages": [{"role": "user", "content": f"say {i}"}, answer]}) for i in range(10)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def adapter(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "adapter"
    shown = ok(
        "finetune", "--model", model, "--data", rows, "--output", output, "--epochs", 20, "--batch-size", 3,
        "--eval-every", 10, "--learning-rate", "1e-2",
    )  # fmt: skip
    assert "held-out loss" in shown
    assert "before:" in shown
    assert f"adapter in {output}/" in shown
    assert f'metal-candle generate --adapter {output} "say ' in shown
    return output


def test_finetune_leaves_adapter_metrics_and_plot(adapter: Path) -> None:
    assert {path.name for path in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.jsonl",
        "loss.png",
        "training.state",
    }
    records = read_metrics(adapter / "metrics.jsonl")
    held_out = [record["held_out_loss"] for record in records if "held_out_loss" in record]
    assert held_out[-1] < 0.2 < 3 < held_out[0]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 61))
    assert (adapter / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_packing_makes_fewer_and_larger_updates(model: Path, rows: Path, tmp_path: Path) -> None:
    arguments = ("finetune", "--model", model, "--data", rows, "--sample", "", "--valid-fraction", 0, "--batch-size", 1)
    assert "10 updates" in ok(*arguments, "--output", tmp_path / "apart")
    assert "2 updates" in ok(*arguments, "--output", tmp_path / "packed", "--packing", "--max-length", 200)
    counts = [
        [record["trained_tokens"] for record in read_metrics(tmp_path / folder / "metrics.jsonl") if "loss" in record]
        for folder in ("apart", "packed")
    ]
    assert len(counts[0]) == 10
    assert len(counts[1]) == 2
    assert sum(counts[0]) == sum(counts[1])


def test_generate_uses_the_adapter(model: Path, adapter: Path) -> None:
    plain = ok("generate", "--model", model, "--max-tokens", 12, "say 3")
    adapted = ok("generate", "--adapter", adapter, "--max-tokens", 12, "say 3")  # its base model is in its file
    assert adapted.strip() == "the answer"
    assert plain != adapted
    assert ok("generate", "--adapter", adapter, "--max-tokens", 12, stdin="say 3\n") == adapted


def test_sampling_is_repeatable(model: Path) -> None:
    flags = ("--temperature", 1.5, "--top-k", 20, "--top-p", 0.95, "--max-tokens", 20)
    first = ok("generate", "--model", model, *flags, "--seed", 1, "say 3")
    assert ok("generate", "--model", model, *flags, "--seed", 1, "say 3") == first
    assert ok("generate", "--model", model, *flags, "--seed", 2, "say 3") != first


def test_merge_gives_the_adapted_model(model: Path, adapter: Path, tmp_path: Path) -> None:
    ok("merge", "--adapter", adapter, "--output", tmp_path / "merged")
    merged, base = load_model(tmp_path / "merged"), load_model(model).model
    base.apply_adapter(LoRAAdapter.load(adapter, base))
    from metal_candle import Tensor

    ids = Tensor([[3, 4, 5, 6, 7]])
    # one product more is rounded in float32
    np.testing.assert_allclose(merged.model(ids).numpy(), base(ids).numpy(), atol=1e-4)
    assert ok("generate", "--model", tmp_path / "merged", "--max-tokens", 12, "say 3").strip() == "the answer"


def test_inspect(model: Path, adapter: Path, rows: Path) -> None:
    shown = ok("inspect", "model", model, "--tensors")
    assert "llama" in shown
    assert "model.layers.1.mlp.down_proj.weight  (64, 64)" in shown
    shown = ok("inspect", "adapter", adapter)
    assert "rank 8, alpha 16, scale 2" in " ".join(shown.split())
    shown = ok("inspect", "data", rows, "--model", model, "--rows", 1)
    assert "[[the answer<|im_end|>]]" in shown
    assert "10 rows" in shown


def test_doctor() -> None:
    shown = ok("doctor")
    assert "GFLOP/s" in shown
    assert "device" in shown


def test_a_yaml_file_has_the_names_of_the_flags_which_win(model: Path, rows: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    settings = "rank: 2\nsteps: 3\nbatch-size: 2\nsample: ''\ntargets: q_proj,v_proj\n"
    config.write_text(f"model: {model}\ndata: {rows}\n{settings}")
    ok("finetune", "--config", config, "--output", tmp_path / "out", "--rank", 4)
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["r"] == 4
    assert sorted(written["target_modules"]) == ["q_proj", "v_proj"]
    assert read_metrics(tmp_path / "out" / "metrics.jsonl")[-1]["step"] == 3


def interrupted(arguments: tuple[object, ...], log: Path, times: int) -> tuple[int, str]:
    """Exit code and errors of a run that gets so many Ctrl-C once it has made some steps."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 600
    while not (log.exists() and log.read_text().count("\n") > 5):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    _, errors = process.communicate(timeout=600)
    return process.returncode, errors


@pytest.mark.parametrize("times", [1, 2])
def test_control_c_saves_and_says_how_to_go_on(model: Path, rows: Path, tmp_path: Path, times: int) -> None:
    output = tmp_path / "out"
    arguments = ("finetune", "--model", model, "--data", rows, "--output", output, "--epochs", 100_000, "--sample", "")
    code, errors = interrupted(arguments, output / "metrics.jsonl", times)
    assert code == INTERRUPTED, errors
    assert "Traceback" not in errors
    command = errors.strip().splitlines()[-1].partition("go on with: ")[2]
    assert command == f"metal-candle finetune --resume {output}"
    start = LoRAAdapter.load(output, load_model(model).model)
    assert any(layer.lora_b().numpy().any() for _, layer in start.layers())
    made = TrainingState.load(output).step
    ok(*command.split()[1:], "--steps", made + 2)
    steps = [record["step"] for record in read_metrics(output / "metrics.jsonl") if "loss" in record]
    assert steps == list(range(1, made + 3))


def test_a_resumed_run_has_the_flags_of_its_folder(model: Path, rows: Path, tmp_path: Path) -> None:
    flags = ("--model", model, "--data", rows, "--rank", 2, "--targets", "q_proj,v_proj", "--dropout", 0.2)
    flags += ("--accumulation", 2, "--batch-size", 2, "--eval-every", 2, "--sample", "", "--seed", 3)
    ok("finetune", *flags, "--output", tmp_path / "parts", "--epochs", 3, "--save-every", 1, "--steps", 4)
    first = TrainingState.load(tmp_path / "parts")
    assert first.step == 4
    shown = ok("finetune", "--resume", tmp_path / "parts", "--steps", 9, "--output", tmp_path / "on")
    assert "resumed  after step 4 of 9; its schedule was made for 4, after which the rate stays at 0.0001" in shown
    on = TrainingState.load(tmp_path / "on")
    assert (on.step, on.adapter_config.rank, on.config["max_steps"]) == (9, 2, 9)
    records = read_metrics(tmp_path / "on" / "metrics.jsonl")
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 10))
    assert TrainingState.load(tmp_path / "parts").step == 4
    assert "the run is complete; a larger --steps extends it" in ok("finetune", "--resume", tmp_path / "on")


def test_help_shows_an_example() -> None:
    for command in ("finetune", "generate", "merge", "doctor"):
        assert f"Example: metal-candle {command}" in ok(command, "--help")
    assert run().returncode != 0


@pytest.mark.parametrize(
    ("name", "value"), [("METAL_CANDLE_KERNELS", "reference"), ("METAL_CANDLE_DISABLE", "graph,custom-metal")]
)
def test_the_switches_change_nothing_that_is_seen(
    model: Path, rows: Path, adapter: Path, tmp_path: Path, name: str, value: str
) -> None:
    arguments = ("--model", model, "--data", rows, "--steps", 4, "--sample", "")
    losses = []
    for output, environment in ((tmp_path / "on", {}), (tmp_path / "off", {name: value})):
        ok("finetune", *arguments, "--output", output, **environment)
        losses.append([record["loss"] for record in read_metrics(output / "metrics.jsonl") if "loss" in record])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    shown = ok("generate", "--adapter", adapter, "--max-tokens", 12, "say 3", **{name: value})
    assert shown.strip() == "the answer"


def test_debug_says_which_kernels_were_chosen(model: Path) -> None:
    result = run("generate", "--model", model, "--max-tokens", 1, "say 3", METAL_CANDLE_DEBUG="kernel")
    assert "attention [" in result.stderr
    assert "CPU" in result.stderr or "GPU" in result.stderr

"""Every mistake a user can make ends in one line that says what, where and what to do, and loses nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from metal_candle.training import TrainingState

import mlx.core as mx
import pytest
from program import ENVIRONMENT, FAILED, ok, run, trained

Folder = Callable[..., Path]
ROWS = [{"prompt": "name a tool", "completion": f"tool number {i}"} for i in range(6)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def refused(*arguments: object, exit_code: int = FAILED) -> str:
    """The one line that the program ends with."""
    result = run(*arguments)
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    line = refused("finetune", "--model", tmp_path / "folder", "--output", tmp_path / "out")
    assert "folder/config.json; a Hugging Face model folder has one" in line
    line = refused("finetune", "--model", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert "model file not found" in line
    assert "takes a folder with config.json, a .gguf file, a hub id" in line


def test_a_truncated_gguf(tmp_path: Path, smollm2_gguf: Path) -> None:
    with smollm2_gguf.open("rb") as whole:
        (tmp_path / "cut.gguf").write_bytes(whole.read(3_000_000))
    assert "cut.gguf" in refused("generate", "--model", tmp_path / "cut.gguf", "hello")


def test_a_truncated_shard(tmp_path: Path, tiny_model_dir: Folder, rows: Path) -> None:
    folder = tiny_model_dir(shards=2)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    line = refused("finetune", "--model", folder, "--data", rows, "--output", tmp_path / "out")
    assert shard.name in line
    shard.unlink()
    assert shard.name in refused("finetune", "--model", folder, "--data", rows, "--output", tmp_path / "out")


def test_weights_that_do_not_fit_the_configuration(tmp_path: Path, tiny_model_dir: Folder) -> None:
    folder = tiny_model_dir()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    line = refused("inspect", "model", folder)
    assert "model.layers.0.mlp.gate_proj.weight is (64, 32), the configuration asks for (96, 32)" in line
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    line = refused("inspect", "model", folder)
    assert "cannot find tensor model.layers.2." in line
    assert "nearest: model.layers." in line
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    assert "weights that config.json has no place for: model.layers.1." in refused("inspect", "model", folder)


def test_an_unknown_architecture(tiny_model_dir: Folder) -> None:
    folder = tiny_model_dir()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    line = refused("inspect", "model", folder)
    assert "unknown architecture 'unheard-of'; takes llama, mistral, qwen2, qwen3" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n', "rows.jsonl:2: "),
        ('{"question": "a", "answer": "b"}\n', "rows.jsonl:1: "),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "rows.jsonl:1: "),
        ("\n\n", "rows.jsonl: "),
        (json.dumps({"text": "word " * 500}) + "\n", "the limit is 1024; raise --max-length"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, tiny_model_dir: Folder, rows: Path, text: str, expected: str) -> None:
    rows.write_text(text)
    arguments = ("--model", tiny_model_dir(), "--data", rows)
    assert expected in refused("finetune", *arguments, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert expected in refused("inspect", "data", rows, "--model", arguments[1])


def test_data_that_is_not_there(tmp_path: Path, tiny_model_dir: Folder) -> None:
    line = refused("finetune", "--model", tiny_model_dir(), "--data", "no.jsonl", "--output", tmp_path / "out")
    assert "no.jsonl: no such file or directory" in line


def test_adapters_that_cannot_be_used(tmp_path: Path, tiny_model_dir: Folder, rows: Path) -> None:
    model = tiny_model_dir()
    adapter = trained(model, rows, tmp_path / "adapter")
    other = tiny_model_dir(hidden_size=64, head_dim=16)
    line = refused("generate", "--model", other, "--adapter", adapter, "hello")
    assert "the adapter is for another model" in line
    assert "maps 32 to 32 there, 64 to 64 here" in line
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "adapter_model.safetensors" in refused("generate", "--model", model, "--adapter", adapter, "hello")
    weights.unlink()
    assert "adapter_model.safetensors" in refused("inspect", "adapter", adapter)
    assert "none: no such adapter; takes a folder or a .safetensors file" in refused(
        "generate", "--adapter", tmp_path / "none", "hello"
    )


def test_an_adapter_of_fewer_layers(tmp_path: Path, tiny_model_dir: Folder, rows: Path) -> None:
    adapter = trained(tiny_model_dir(), rows, tmp_path / "adapter")
    taller = tiny_model_dir(num_hidden_layers=3)
    line = refused("merge", "--model", taller, "--adapter", adapter, "--output", tmp_path / "merged")
    assert "it spans 2 layers, this one has 3" in line


def test_flags_that_an_adapter_to_start_from_contradicts(tmp_path: Path, tiny_model_dir: Folder, rows: Path) -> None:
    model = tiny_model_dir()
    adapter = trained(model, rows, tmp_path / "adapter")
    arguments = ("--model", model, "--data", rows, "--sample", "", "--init-adapter", adapter, "--output")
    ok("finetune", *arguments, tmp_path / "right", "--steps", 1)
    result = run("finetune", *arguments, tmp_path / "rank", "--rank", 4)
    assert f"--rank says 4, the adapter in {adapter} has 8" in result.stderr
    result = run("finetune", *arguments, tmp_path / "targets", "--targets", "q_proj")
    assert "--targets says ['q_proj']" in result.stderr


def test_what_a_resumed_run_contradicts(tmp_path: Path, tiny_model_dir: Folder, rows: Path) -> None:
    model = tiny_model_dir()
    folder = trained(model, rows, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    line = refused("finetune", "--resume", folder, "--rank", 4)
    assert f"--rank says 4, the run in {folder} has 8; leave the flag out" in line
    assert "--learning-rate says 0.1, the run in" in refused("finetune", "--resume", folder, "--learning-rate", 0.1)
    (tmp_path / "run.yaml").write_text("seed: 4\n")
    assert "--seed says 4, the run in" in refused("finetune", "--resume", folder, "--config", tmp_path / "run.yaml")
    other = tmp_path / "other.jsonl"
    other.write_text(rows.read_text().replace("tool", "hat"))
    result = run("finetune", "--resume", folder, "--data", other, "--steps", 4, "--output", tmp_path / "on")
    assert result.returncode == FAILED
    assert "training rows are" in result.stderr
    assert "resumed" not in result.stdout  # nothing is announced that does not happen
    assert not (tmp_path / "on").exists()
    reseeded = tiny_model_dir(seed=1)
    line = refused("finetune", "--resume", folder, "--model", reseeded, "--steps", 4)
    assert "the model: the weights have other values" in line
    line = refused("finetune", "--resume", folder, "--steps", 1)
    assert f"--steps 1 and --epochs 1 make 1 update, the run in {folder} has made 2" in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "moved.jsonl").write_text(rows.read_text())  # the same rows elsewhere are the same rows
    ok("finetune", "--resume", folder, "--data", tmp_path / "moved.jsonl", "--steps", 3, "--sample", "")
    (folder / "training.state").write_bytes(b"not a state")
    line = refused("finetune", "--resume", folder)
    assert "training.state" in line
    assert "model format" not in line
    (folder / "training.state").unlink()
    line = refused("finetune", "--resume", folder)
    assert "holds no training.state" in line
    assert "--init-adapter starts a new run" in line


def test_a_prompt_longer_than_the_context(tiny_model_dir: Folder) -> None:
    line = refused("generate", "--model", tiny_model_dir(), "--raw", "a b " * 200)
    assert "tokens, the model's context is 256; shorten it" in line


def test_a_model_that_gives_nan_is_not_trained(tmp_path: Path, tiny_model_dir: Folder, rows: Path) -> None:
    model = tiny_model_dir()
    weights = mx.load(str(model / "model.safetensors"))
    weights["model.norm.weight"] = mx.full(weights["model.norm.weight"].shape, float("nan"))
    mx.save_safetensors(str(model / "model.safetensors"), weights)
    result = run("finetune", "--model", model, "--data", rows, "--output", tmp_path / "out", "--sample", "")
    assert result.returncode == FAILED
    assert "before the first step: the model's weights give it" in result.stderr
    assert not (tmp_path / "out").exists()  # the log of such a run says nothing more
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    run("finetune", "--model", model, "--data", rows, "--output", tmp_path / "kept", "--sample", "")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["notes.txt"]


def test_an_output_that_cannot_be_written(tmp_path: Path, tiny_model_dir: Folder, rows: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    line = refused("finetune", "--model", tiny_model_dir(), "--data", rows, "--output", blocked / "adapter")
    assert "failed to save" in line
    assert str(blocked / "adapter") in line


def test_an_adapter_is_not_replaced_by_accident(tmp_path: Path, tiny_model_dir: Folder, rows: Path) -> None:
    model = tiny_model_dir()
    adapter = trained(model, rows, tmp_path / "adapter")
    before = (adapter / "adapter_model.safetensors").read_bytes()
    line = refused("finetune", "--model", model, "--data", rows, "--output", adapter)
    assert "holds a run; --overwrite replaces it" in line
    assert (adapter / "adapter_model.safetensors").read_bytes() == before
    ok("finetune", "--model", model, "--data", rows, "--output", adapter, "--overwrite", "--steps", 1, "--sample", "")
    assert (adapter / "adapter_model.safetensors").read_bytes() != before


def test_a_loss_that_is_not_finite_keeps_the_last_good_adapter(
    tmp_path: Path, tiny_model_dir: Folder, rows: Path
) -> None:
    model, output = tiny_model_dir(), tmp_path / "out"
    arguments = ("--model", model, "--data", rows, "--output", output, "--learning-rate", "1e38", "--epochs", 5)
    result = run("finetune", *arguments, "--warmup", 0, "--sample", "", "--weight-decay", 1)
    assert result.returncode == FAILED
    assert "Traceback" not in result.stderr
    assert "at step 2; the adapter keeps the weights of step 1" in result.stderr
    # Step 1 is nothing good: its weights are what gave the loss.
    assert f"what was saved after step 0 is unchanged in {output}" in result.stderr
    assert not (output / "adapter_config.json").exists()


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, tiny_model_dir: Folder, rows: Path) -> None:
    """A file may grow to the size of the state alone; the log gets there a while after."""
    output = tmp_path / "out"
    small = ("--rank", 1, "--targets", "q_proj", "--steps", 3, "--sample", "")
    ok("finetune", "--model", tiny_model_dir(), "--data", rows, "--output", output, *small)
    limit = (output / "training.state").stat().st_size + 1000
    script = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    script += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from metal_candle.cli import main; main()"
    arguments = ("finetune", "--resume", output, "--epochs", 2000, "--steps", 4000, "--eval-every", 0)
    arguments += ("--save-every", 9)
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert ended.returncode == FAILED, ended.stderr
    line = ended.stderr.strip().splitlines()[-1]
    assert "metrics.jsonl: File too large" in line
    kept = TrainingState.load(output)
    assert kept.step > 3
    assert f"what was saved after step {kept.step} is unchanged in {output}: go on with " in line
    assert line.endswith(f"metal-candle finetune --resume {output}")
    ok("finetune", "--resume", output, "--steps", kept.step + 1)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--rank", 0], "rank is 0; takes at least 1"),
        (["--targets", "q_proj,head"], "target module 'head' does not exist; takes all, q_proj"),
        (["--dtype", "f64"], "dtype is 'f64'; takes f32, bf16 or f16"),
        (["--batch-size", 0], "batch_size is 0; takes at least 1"),
        (["--learning-rate", -1], "lr is -1.0; takes at least 0"),
        (["--warmup", 1], "warmup is 1.0; takes 0 <= warmup < 1"),
        (["--resume", "nowhere"], "--resume: nowhere is no folder"),
        (["--init-adapter", "nowhere"], "nowhere: no such adapter"),
        (["--seed", -1], "seed is -1; takes 0 to 2^63 - 1"),
        (["--seed", 10**20], "takes 0 to 2^63 - 1"),
        (["--save-every", -3], "save_every is -3; takes at least 0"),
        (["--model", ""], "the name is empty; takes a folder"),
        (["--rank", 40], "rank is 40 for a layer of 32 to 32; takes at most the smaller"),
    ],
)
def test_flags_out_of_range(tmp_path: Path, tiny_model_dir: Folder, rows: Path, flags: list[object], text: str) -> None:
    output = tmp_path / "new" / "out"
    line = refused("finetune", "--model", tiny_model_dir(), "--data", rows, "--output", output, *flags)
    assert text in line
    assert not output.parent.exists()  # however late the error comes


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--temperature", -1], "temperature is -1.0; takes at least 0"),
        (["--top-p", 2], "top-p is 2.0; takes"),
        (["--top-k", -3], "top-k is -3; takes"),
        (["--max-tokens", -1], "max_tokens"),
        (["--raw", "--system", "be brief"], "--raw leaves out the chat template, which --system needs"),
        (["--raw", "--chat"], "--raw leaves out the chat template, which --chat needs"),
    ],
)
def test_sampling_out_of_range(tiny_model_dir: Folder, flags: list[object], text: str) -> None:
    assert text in refused("generate", "--model", tiny_model_dir(), "hello", *flags)


def test_usage_errors_exit_with_two(tmp_path: Path) -> None:
    result = run("finetune", "--modle", "x")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    (tmp_path / "run.yaml").write_text("rnak: 4\n")
    result = run("finetune", "--config", tmp_path / "run.yaml")
    assert result.returncode == 2
    assert "unknown key 'rnak'; did you mean rank?" in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("text", ["rank: many", "rank: true", "model:", "overwrite: 3", "rank: {a: 1}"])
def test_yaml_values_of_a_wrong_type(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text + "\n")
    result = run("finetune", "--config", tmp_path / "run.yaml")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_yaml_lists_and_an_empty_file(tmp_path: Path, tiny_model_dir: Folder, rows: Path) -> None:
    arguments = ("--model", tiny_model_dir(), "--data", rows, "--steps", 1, "--sample", "")
    (tmp_path / "run.yaml").write_text("targets: [q_proj, v_proj]\n")
    ok("finetune", "--config", tmp_path / "run.yaml", *arguments, "--output", tmp_path / "a")
    assert sorted(json.loads((tmp_path / "a/adapter_config.json").read_text())["target_modules"]) == [
        "q_proj",
        "v_proj",
    ]
    (tmp_path / "run.yaml").write_text("")
    ok("finetune", "--config", tmp_path / "run.yaml", *arguments, "--output", tmp_path / "b")


def test_merge_refuses_to_write_over_something(tmp_path: Path, tiny_model_dir: Folder, rows: Path) -> None:
    model = tiny_model_dir()
    adapter = trained(model, rows, tmp_path / "adapter")
    target = tmp_path / "merged"
    target.mkdir()
    (target / "precious.txt").write_text("keep me")
    line = refused("merge", "--adapter", adapter, "--model", tmp_path / "nowhere", "--output", target)
    assert "the folder is not empty" in line  # said before the model is looked for
    assert (target / "precious.txt").read_text() == "keep me"
    shutil.rmtree(target)
    line = refused("merge", "--adapter", adapter, "--model", model, "--output", model, "--overwrite")
    assert "is the model that the adapter is for, and would act twice in it; give another folder" in line
    ok("merge", "--adapter", adapter, "--model", model, "--output", target)
    assert (target / "config.json").is_file()

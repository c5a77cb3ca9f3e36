"""``convert``, ``merge`` and ``inspect adapter`` on adapters of every format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from metal_candle.formats import safetensors
from metal_candle.models.load import load_model
from metal_candle.tensor.eager import Tensor
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig
from metal_candle.training.formats import metal_candle
from metal_candle.training.formats.recognise import read

import gguf
import mlx.core as mx
import pytest
from in_process import Program
from program import OK

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Folder) -> Path:
    return tiny_model_dir()


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "peft"
    network = load_model(model).model
    made = LoRAAdapter.for_model(network, LoRAAdapterConfig(2, 4.0))
    for number, path in enumerate(made.paths()):
        layer = made.layer_at(path)
        assert layer is not None
        # Large enough to change a text, whatever was drawn before.
        for var, scale in ((layer.lora_a(), 0.5), (layer.lora_b(), 0.5)):
            var.set(Tensor.from_mlx(mx.random.normal(tuple(var.shape), scale=scale, key=mx.random.key(number))))
    made.save(folder, str(model))
    return folder


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(capsys, monkeypatch)


def test_around_all_formats_and_back(cli: Program, model: Path, adapter: Path, tmp_path: Path) -> None:
    chain = [adapter, tmp_path / "mlx", tmp_path / "a.safetensors", tmp_path / "peft"]
    for source, target, to in zip(chain, chain[1:], ("mlx-lm", "metal-candle", "peft")):
        said = cli.ok("convert", "--adapter", source, "--output", target, "--to", to)
        assert f"{target}: {read(source).format.value} to {to}, changes 2 layers, 4 modules: norm" in said  # type: ignore[union-attr]
        shown = cli.ok("inspect", "adapter", target)
        assert f"format      {to}\n" in shown
        assert f"base model  {model}\n" in shown
        assert "rank        2, alpha 4, scale 2, dropout 0\n" in shown
        assert "targets     q_proj, v_proj\n" in shown
        assert "modules     4 in 2 layers, 0-1\n" in shown
        assert "parameters  448, f32\n" in shown
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "peft" / name).read_bytes() == (adapter / name).read_bytes()
    texts = {cli.ok("generate", "--adapter", each, "--max-tokens", 8, "say 3") for each in chain[:3]}
    assert len(texts) == 1
    assert cli.ok("generate", "--model", model, "--max-tokens", 8, "say 3") not in texts


def test_convert_to_gguf(cli: Program, adapter: Path, tmp_path: Path) -> None:
    cli.ok("convert", "--adapter", adapter, "--output", tmp_path / "a.gguf", "--to", "gguf", "--dtype", "f16")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert len(reader.tensors) == 8
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F16}
    assert "adapters are written in that format" in cli.refused("inspect", "adapter", tmp_path / "a.gguf")


def test_inspect_beside_a_model(cli: Program, model: Path, adapter: Path, tiny_model_dir: Folder) -> None:
    shown = cli.ok("inspect", "adapter", adapter, "--model", model, "--modules")
    assert "changes 2 of 2 layers, 4 modules: norm of the deltas " in shown
    assert "model.layers.1.self_attn.v_proj  rank 2, scale 2, norm " in shown
    assert shown.rstrip().endswith(" % of the weight's")
    line = cli.refused("inspect", "adapter", adapter, "--model", tiny_model_dir(num_hidden_layers=3))
    assert "the adapter is for another model: it spans 2 layers, this one has 3" in line


def test_merge_says_what_is_lost(cli: Program, adapter: Path, tmp_path: Path) -> None:
    said = cli.ok("merge", "--adapter", adapter, "--output", tmp_path / "halves", "--dtype", "bf16")
    assert f"{adapter}: changes 2 of 2 layers, 4 modules: norm of the deltas " in said
    assert "4 weights merged into bf16, " in said
    assert " % of the deltas lost, at most " in said
    flags = ("--quantize", 2, "--group-size", 32)
    code, out, err = cli.run("merge", "--adapter", adapter, "--output", tmp_path / "four", *flags)
    assert code == OK
    assert "4 weights merged into 2 bits (groups of 32), " in out
    last = err.strip().splitlines()[-1]
    assert last.startswith("warning: merging into 2 bits (groups of 32) loses ")
    assert "the worst: model.layers." in last
    assert len(load_model(tmp_path / "four").model.quantized_weights()) == 14


def test_what_convert_refuses(cli: Program, adapter: Path, tmp_path: Path) -> None:
    def convert(source: Path, output: Path, to: str, *more: object) -> str:
        return cli.refused("convert", "--adapter", source, "--output", output, "--to", to, *more)

    assert "adapter format 'onnx' does not exist; takes peft, mlx-lm, metal-candle, gguf" in convert(
        adapter, tmp_path / "x", "onnx"
    )
    assert "none: no such adapter" in convert(tmp_path / "none", tmp_path / "x", "peft")
    assert "is the adapter that is converted" in convert(adapter, adapter, "mlx-lm")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious.txt").write_text("keep me")
    assert "is there already; give another name, or --overwrite" in convert(adapter, tmp_path / "there", "peft")
    assert "is a folder; gguf takes a file" in convert(adapter, tmp_path / "there", "gguf")
    assert "--dtype f16 is for gguf" in convert(adapter, tmp_path / "x", "peft", "--dtype", "f16")
    crate = tmp_path / "crate.safetensors"
    safetensors.save(crate, metal_candle.tensors_of(read(adapter)))
    assert "does not say its alpha, as the crate's files do not; give it" in convert(crate, tmp_path / "x", "peft")
    line = convert(crate, tmp_path / "x.gguf", "gguf", "--alpha", 4)
    assert "names no base model, whose heads a GGUF adapter needs; give it with --model" in line
    shutil.copytree(adapter, tmp_path / "dora")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "dora" / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    assert "use_dora is True (DoRA), which is not supported" in convert(tmp_path / "dora", tmp_path / "x", "mlx-lm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crate.safetensors", "dora", "there"]


def test_whoever_loads_an_adapter_says_what_it_changes(
    cli: Program, model: Path, adapter: Path, tmp_path: Path
) -> None:
    said = f"{adapter}: changes 2 of 2 layers, 4 modules: norm of the deltas "
    code, out, err = cli.run("generate", "--adapter", adapter, "--max-tokens", 4, "say 3")
    assert code == OK
    assert err.startswith(said)
    assert err.count("\n") == 1
    assert "changes" not in out  # which may be piped on
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "say 3", "completion": "3"}\n' * 4)
    run = ("finetune", "--data", rows, "--sample", "", "--valid-fraction", 0, "--output", tmp_path / "run")
    out = cli.ok(*run, "--model", model, "--init-adapter", adapter, "--steps", 1)
    assert "\ndeltas   changes 2 of 2 layers, 4 modules: norm of the deltas " in out
    out = cli.ok("finetune", "--resume", tmp_path / "run", "--steps", 2)
    assert "\ndeltas   changes 2 of 2 layers, 4 modules: norm of the deltas " in out
    out = cli.ok(*run, "--model", model, "--steps", 1, "--overwrite")
    assert "\ndeltas" not in out


def test_generate_with_a_file_that_does_not_say_its_alpha(
    cli: Program, model: Path, adapter: Path, tmp_path: Path
) -> None:
    crate = tmp_path / "crate.safetensors"
    safetensors.save(crate, metal_candle.tensors_of(read(adapter)))
    flags = ("generate", "--model", model, "--max-tokens", 8)
    assert "give it (alpha=16.0, --alpha 16)" in cli.refused(*flags, "--adapter", crate, "say 3")
    same = cli.ok(*flags, "--adapter", adapter, "say 3")
    assert cli.ok(*flags, "--adapter", crate, "--alpha", 4, "say 3") == same
    assert cli.ok(*flags, "--adapter", crate, "--alpha", 1, "say 3") != same
    assert "--alpha is an adapter's; give one with --adapter" in cli.refused(*flags, "--alpha", 4, "say 3")

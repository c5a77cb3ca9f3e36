"""Models of mlx-lm as bases, beside mlx-lm: losses, gradients, adapters on disk, generation, the command line."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from metal_candle import DType, Tensor
from metal_candle.cli import main
from metal_candle.error import (
    CannotFindTensorError,
    CheckpointError,
    ModelError,
    UnexpectedShapeError,
    UnsupportedDTypeForOpError,
)
from metal_candle.inference import Generator, GeneratorConfig, TextGenerator
from metal_candle.inference.mlx_lm_step import OwnCachesStep
from metal_candle.models import load_model
from metal_candle.models.mlx_lm import MlxLmModel, load_mlx_lm, save_mlx_lm
from metal_candle.nn.optim import ParamsAdamW
from metal_candle.nn.quantized_linear import QuantizedWeight
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig
from metal_candle.training.config import TrainingConfig
from metal_candle.training.data.tokenizing import Example
from metal_candle.training.merge import MergeWarning, merge_adapter
from metal_candle.training.schedule import LRScheduler
from metal_candle.training.trainer import AdapterTrainer

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import numpy as np
import pytest
from mlx.utils import tree_flatten

pytest.importorskip("mlx_lm")

from mlx_lm import load
from mlx_lm.generate import generate_step
from mlx_lm.models import gemma2, gpt2, qwen3_moe
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

Folder = Callable[..., Path]
VOCABULARY = 64
GEMMA2: dict[str, Any] = {
    "model_type": "gemma2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
}


GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_ctx": 64,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-5,
    "vocab_size": VOCABULARY,
}
QWEN3_MOE: dict[str, Any] = {
    **GEMMA2,
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 32,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
    "norm_topk_prob": True,
}


def a_gpt2() -> nn.Module:
    """Odd names, biases, learned positions, a tied head."""
    return gpt2.Model(gpt2.ModelArgs.from_dict(GPT2))


def a_gemma2() -> nn.Module:
    """Logits and scores that are capped, embeddings that are scaled."""
    return gemma2.Model(gemma2.ModelArgs.from_dict(GEMMA2))


def a_qwen3_moe() -> nn.Module:
    """Experts, and a head of its own."""
    return qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(QWEN3_MOE))


def quantised(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        model = make()
        nn.quantize(model, group_size=32, bits=4)
        return model

    return made


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    mx.random.seed(0)
    model = make()
    mx.eval(model.parameters())
    return model


CASES = [
    pytest.param(a_gpt2, ("attn.c_attn", "mlp.c_fc"), id="gpt2"),
    pytest.param(a_gemma2, ("self_attn.q_proj", "mlp.down_proj"), id="gemma2"),
    pytest.param(a_qwen3_moe, ("self_attn.k_proj", "mlp.gate"), id="qwen3_moe"),
    pytest.param(quantised(a_gemma2), ("self_attn.q_proj", "mlp.down_proj"), id="gemma2-4bit"),
]


def adapter_for(model: MlxLmModel, targets: tuple[str, ...], rank: int = 4) -> LoRAAdapter:
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank, 2.0 * rank, 0.0, targets))
    rng = np.random.default_rng(0)
    for _, layer in adapter.layers():
        layer.lora_b().set(Tensor.from_numpy(rng.normal(0, 0.1, layer.lora_b().shape).astype(np.float32)))
    return adapter


def lora_of_mlx_lm(model: Any, adapter: LoRAAdapter) -> Any:
    """mlx-lm's own adapted model, with the factors of ``adapter``."""
    config = {"rank": adapter.config().rank, "scale": 2.0, "dropout": 0.0, "keys": set(adapter.paths())}
    model.freeze()
    linear_to_lora_layers(model, adapter.num_layers(), config)
    factors = []
    for path in adapter.paths():
        layer = adapter.layer_at(path)
        assert layer is not None
        factors += [(f"{path}.lora_a", layer.lora_a().mlx()), (f"{path}.lora_b", layer.lora_b().mlx())]
    model.load_weights(factors, strict=False)
    return model


def loss_of(model: Any, ids: mx.array, rows: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
    logits = model(ids).reshape(-1, VOCABULARY)[rows]
    return (nn.losses.cross_entropy(logits, targets, reduction="none") * weights).sum()


def batch() -> tuple[Tensor, ...]:
    rng = np.random.default_rng(1)
    ids, rows = rng.integers(0, VOCABULARY, (2, 7)).astype(np.uint32), np.array([0, 3, 5, 8, 12], np.int32)
    targets = rng.integers(0, VOCABULARY, 5).astype(np.int32)
    return tuple(Tensor.from_numpy(array) for array in (ids, rows, targets, rng.random(5).astype(np.float32)))


@pytest.mark.parametrize(("make", "targets"), CASES)
def test_loss_and_gradients_are_mlx_lms(make: Callable[[], nn.Module], targets: tuple[str, ...]) -> None:
    model = MlxLmModel(seeded(make))
    adapter = adapter_for(model, targets)
    reference = lora_of_mlx_lm(seeded(make), adapter)
    plain = np.array(model.module(batch()[0].mlx()))
    model.apply_adapter(adapter)
    ids = batch()[0]
    np.testing.assert_allclose(model.forward(ids).numpy(), np.array(reference(ids.mlx())), atol=1e-5)
    loss = model.weighted_loss(*batch())
    grads = loss.backward()
    value, found = nn.value_and_grad(reference, loss_of)(reference, *[tensor.mlx() for tensor in batch()])
    expected = dict(tree_flatten(found))
    assert float(loss) == pytest.approx(value.item(), abs=1e-5)
    assert len(expected) == len(grads) == 2 * len(adapter.paths())
    for path in adapter.paths():
        layer = adapter.layer_at(path)
        assert layer is not None
        for name, var in (("lora_a", layer.lora_a()), ("lora_b", layer.lora_b())):
            np.testing.assert_allclose(grads[var].numpy(), np.array(expected[f"{path}.{name}"]), atol=1e-5)
    model.remove_adapter()
    np.testing.assert_array_equal(model.forward(ids).numpy(), plain)


def test_a_run_is_mlx_lms(tmp_path: Path) -> None:
    """Five updates with AdamW on the same batches: the same losses, and the same factors within their rounding."""
    model = MlxLmModel(seeded(a_gpt2))
    adapter = adapter_for(model, ("c_attn", "c_proj"))
    reference = lora_of_mlx_lm(seeded(a_gpt2), adapter)
    rng = np.random.default_rng(2)
    row = rng.integers(0, VOCABULARY, 12).tolist()
    examples = [Example(row, [False, *[True] * 11], tmp_path, 1)]
    numbers = ParamsAdamW(lr=1e-3, weight_decay=0.1)
    config = TrainingConfig(
        num_epochs=5,
        batch_size=1,
        max_grad_norm=None,
        optimizer_config=numbers,
        lr_scheduler=LRScheduler.constant(1e-3),
    )
    losses = [event.loss for event in AdapterTrainer(model, adapter, config).run(examples)]
    optimizer = mlx.optimizers.AdamW(1e-3, [numbers.beta1, numbers.beta2], numbers.eps, 0.1, bias_correction=True)
    ids, targets = mx.array([row[:-1]]), mx.array(row[1:])
    step = nn.value_and_grad(reference, loss_of)
    expected = []
    for _ in range(5):
        loss, grads = step(reference, ids, mx.arange(11), targets, mx.full((11,), 1 / 11))
        expected.append(loss.item())
        optimizer.update(reference, grads)
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    factors = dict(tree_flatten(reference.trainable_parameters()))
    for path in adapter.paths():
        layer = adapter.layer_at(path)
        assert layer is not None
        np.testing.assert_allclose(layer.lora_b().numpy(), np.array(factors[f"{path}.lora_b"]), atol=1e-4)


@pytest.mark.parametrize(("make", "targets"), CASES)
def test_what_is_saved_acts_in_mlx_lm(make: Callable[[], nn.Module], targets: tuple[str, ...], tmp_path: Path) -> None:
    model = MlxLmModel(seeded(make))
    adapter = adapter_for(model, targets)
    model.apply_adapter(adapter)
    ids = batch()[0]
    adapted = model.forward(ids).numpy()
    adapter.save(tmp_path / "mlx", format="mlx-lm")
    loaded = load_adapters(seeded(make), str(tmp_path / "mlx"))
    loaded.eval()
    np.testing.assert_allclose(np.array(loaded(ids.mlx())), adapted, atol=1e-5)
    adapter.save(tmp_path / "peft")
    for folder in ("mlx", "peft"):
        model.remove_adapter()
        model.apply_adapter(LoRAAdapter.load(tmp_path / folder, model))
        np.testing.assert_allclose(model.forward(ids).numpy(), adapted, atol=1e-6)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(("make", "targets"), CASES)
def test_generation_is_mlx_lms(
    make: Callable[[], nn.Module], targets: tuple[str, ...], on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OwnCachesStep, "can_follow", lambda self: on_gpu)
    model = MlxLmModel(seeded(make))
    adapter = adapter_for(model, targets)
    reference, prompt = lora_of_mlx_lm(seeded(make), adapter), [3, 5, 7, 11]
    reference.eval()
    model.apply_adapter(adapter)
    found = Generator(model, GeneratorConfig(max_tokens=12, stop_on_eos=False)).generate(prompt)
    expected = [token for token, _ in generate_step(mx.array(prompt), reference, max_tokens=12)]
    assert found[4:] == expected


def test_a_long_prompt_is_read_in_pieces() -> None:
    model = MlxLmModel(seeded(a_gemma2))
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 21).tolist()
    whole = OwnCachesStep(model).feed(ids)
    step = OwnCachesStep(model, 8)
    step.feed(ids[:17])
    np.testing.assert_allclose(step.feed(ids[17:]), whole, atol=1e-5)


def test_experts_are_refused_by_name() -> None:
    model = MlxLmModel(seeded(a_qwen3_moe))
    assert model.refused_target("gate_proj") == (
        "model.layers.0.mlp.switch_mlp.gate_proj is a SwitchLinear, which cannot be adapted"
    )
    assert model.refused_target("lm_head") == "lm_head is a Linear, which cannot be adapted"
    assert model.refused_target("q_proj") is None


# --- folders ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_model_dir: Folder) -> Path:
    """A Gemma 2 in a folder, with a tokenizer of as many tokens."""
    path = tiny_model_dir()
    model = seeded(a_gemma2)
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (path / "config.json").write_text(json.dumps(GEMMA2))
    return path


def test_a_folder_of_an_architecture_that_is_not_ours(folder: Path) -> None:
    loaded = load_model(folder)
    assert isinstance(loaded.model, MlxLmModel)
    assert loaded.note.startswith("architecture 'gemma2' goes through mlx-lm ")
    ids = batch()[0]
    np.testing.assert_array_equal(loaded.model.forward(ids).numpy(), np.array(seeded(a_gemma2)(ids.mlx())))
    assert (loaded.model.config.max_position_embeddings, loaded.model.config.eos_token_ids()) == (128, {2})
    assert TextGenerator(loaded, GeneratorConfig(max_tokens=5)).generate("the cat")
    assert str(load_mlx_lm(folder, "bf16").model.dtype) == "bf16"


def test_a_quantised_folder_stays_quantised(folder: Path) -> None:
    model = seeded(quantised(a_gemma2))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config = {**GEMMA2, "quantization": {"group_size": 32, "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_mlx_lm(folder)
    assert all(isinstance(place.linear, nn.QuantizedLinear) for place in loaded.model.projections())
    ids = batch()[0]
    np.testing.assert_array_equal(loaded.model.forward(ids).numpy(), np.array(model(ids.mlx())))


def test_folders_that_cannot_be_loaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").write_text(json.dumps({**GEMMA2, "model_type": "unheard_of"}))
    with pytest.raises(ModelError.InvalidConfig, match=r"unknown architecture 'unheard_of'; takes llama, .*mlx-lm"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps({**GEMMA2, "hidden_size": 48}))
    with pytest.raises(ModelError.InvalidConfig, match="mlx-lm cannot load it"):
        load_model(folder)
    with pytest.raises(ModelError.FileNotFound, match=r"config\.json"):
        load_mlx_lm(tmp_path)
    (folder / "config.json").write_text(json.dumps(GEMMA2))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError.FileNotFound, match="safetensors"):
        load_model(folder)
    monkeypatch.setitem(sys.modules, "mlx_lm", None)
    with pytest.raises(ModelError.InvalidConfig, match=r'not installed; pip install "metal-candle\[mlx-lm\]"'):
        load_mlx_lm(folder)


def saved_folder(folder: Path, make: Callable[[], nn.Module], config: dict[str, Any]) -> Path:
    model = seeded(make)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


QUANTISED = {"quantization": {"group_size": 32, "bits": 4}}


@pytest.mark.parametrize(
    ("make", "config", "targets"),
    [
        pytest.param(a_gpt2, GPT2, ("attn.c_attn", "mlp.c_fc"), id="gpt2"),
        pytest.param(a_gemma2, GEMMA2, ("self_attn.q_proj", "mlp.down_proj"), id="gemma2"),
        pytest.param(a_qwen3_moe, QWEN3_MOE, ("self_attn.k_proj", "mlp.gate"), id="qwen3_moe"),
        pytest.param(quantised(a_gemma2), {**GEMMA2, **QUANTISED}, ("self_attn.q_proj",), id="gemma2-4bit"),
    ],
)
def test_a_merged_folder_is_read_by_mlx_lm(
    folder: Path,
    tmp_path: Path,
    make: Callable[[], nn.Module],
    config: dict[str, Any],
    targets: tuple[str, ...],
) -> None:
    loaded = load_mlx_lm(saved_folder(folder, make, config), "f32")
    adapter, ids = adapter_for(loaded.model, targets), batch()[0]
    plain = loaded.model.forward(ids).numpy()
    loaded.model.apply_adapter(adapter)
    adapted = loaded.model.forward(ids).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MergeWarning)
        merged = merge_adapter(loaded.model, adapter)
    save_mlx_lm(tmp_path / "merged", loaded, overrides=merged.weights)
    np.testing.assert_array_equal(loaded.model.forward(ids).numpy(), adapted)  # it is as it was
    theirs, tokenizer = load(str(tmp_path / "merged"))
    found = np.array(theirs(ids.mlx()))
    assert tokenizer.encode("the cat")
    if "quantization" in config:  # what the packed sums stand for is what mlx-lm has
        assert 0 < merged.share < 1
        for path, module in theirs.named_modules():
            if (weight := merged.weights.get(f"{path}.weight")) is not None:
                assert isinstance(weight, QuantizedWeight)
                packed = mx.dequantize(module.weight, module.scales, module.biases, module.group_size, module.bits)
                np.testing.assert_array_equal(np.array(packed), weight.dequantize().numpy())
        assert np.abs(found - adapted).max() < np.abs(plain - adapted).max()
    else:
        # One product of F32 in the place of three.
        np.testing.assert_allclose(found, adapted, atol=1e-4 * np.abs(adapted).max())
        assert np.abs(plain - adapted).max() > 0.01 * np.abs(adapted).max()


def test_what_is_not_saved_as_an_mlx_lm_folder(folder: Path, tmp_path: Path) -> None:
    loaded, output = load_mlx_lm(folder), tmp_path / "out"
    name = f"{loaded.model.projections()[0].path}.weight"
    zeros = Tensor.zeros((2, 2), "f32")
    with pytest.raises(CannotFindTensorError, match=f"x.{name}"):
        save_mlx_lm(output, loaded, overrides={f"x.{name}": zeros})
    with pytest.raises(UnexpectedShapeError):
        save_mlx_lm(output, loaded, overrides={name: zeros})
    with pytest.raises(UnsupportedDTypeForOpError, match="f32, bf16 or f16"):
        save_mlx_lm(output, loaded, "u8")
    with pytest.raises(ModelError.InvalidConfig, match="takes what load_mlx_lm gives"):
        save_mlx_lm(output, replace(loaded, model=MlxLmModel(loaded.model.module)))
    assert not output.exists()
    with pytest.raises(CheckpointError.SaveFailed, match="the folder is not empty"):
        save_mlx_lm(folder, loaded)
    save_mlx_lm(output, loaded, "bf16")
    save_mlx_lm(output, loaded, "f16", overwrite=True)
    assert load_mlx_lm(output).model.dtype is DType.F16
    assert not list(tmp_path.glob(".out*"))


def test_what_speaks_of_other_weights_is_not_taken_along(folder: Path, tmp_path: Path) -> None:
    for name in ("generation_config.json", "adapter_config.json", "pytorch_model.bin.index.json"):
        (folder / name).write_text("{}")
    save_mlx_lm(tmp_path / "out", load_mlx_lm(folder))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names & {"generation_config.json", "adapter_config.json", "pytorch_model.bin.index.json"} == {
        "generation_config.json"
    }


@pytest.mark.slow
def test_the_command_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    data, output = tmp_path / "rows.jsonl", tmp_path / "adapter"
    data.write_text("".join(json.dumps({"prompt": "what is", "completion": f" a cat {i}"}) + "\n" for i in range(6)))
    flags = ["--data", data, "--model", folder, "--output", output, "--rank", "4", "--epochs", "2", "--batch-size", "2"]

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metal-candle", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    code, out, err = run("finetune", *flags)
    assert code == 0, err
    assert "architecture 'gemma2' goes through mlx-lm" in err
    assert "adapter  rank 4" in out
    code, out, err = run("generate", "--adapter", output, "--max-tokens", "5", "what is")
    assert code == 0, err
    code, out, err = run("inspect", "model", folder)
    assert code == 0
    assert "gemma2, of mlx-lm" in out
    code, out, err = run("merge", "--adapter", output, "--output", tmp_path / "merged")
    assert code == 0, err
    assert "14 weights merged into f32, " in out
    load(tmp_path / "merged")

"""llama.cpp itself computes with GGUF adapters: the log-probabilities of tokens that it writes, held against ours.

Its base is a float32 GGUF of the folder that ours is loaded from, and its adapter is made from the PEFT folder that
ours loads: the numbers meet in none of the files. ATOL is ten times the largest difference seen, from sums in another
order, and a thousandth of what half of an adapter changes at the least.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.models.load import load_config, load_model
from metal_candle.tensor.eager import Tensor
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig, TargetModule
from metal_candle.training.formats import gguf_adapter
from metal_candle.training.formats.recognise import read, write

import numpy as np
import pytest
from adapters import SIZES, change_config, random_adapter, random_factors
from gguf_writer import metadata, write_gguf

pytest.importorskip("xllamacpp")  # llama.cpp as a library
pytestmark = pytest.mark.slow

ATOL, LEAST_CHANGE = 3e-4, 0.3
PROMPT = [9, 33, 4, 51, 17, 17, 40, 5]
Q0, K0 = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
LogProbs = np.ndarray[Any, Any]


class Base:
    """A random model as a Hugging Face folder and as a GGUF, and an adapter of all its projections for it."""

    def __init__(self, folder: Path, place: Path, tokenizer: dict[str, Any]) -> None:
        self.folder, self.gguf, self.peft = folder, place / "base.gguf", place / "adapter"
        self.config = load_config(folder)
        architecture = "llama" if self.config.model_type == "mistral" else self.config.model_type
        head_dim = self.config.head_dim()
        # Where a file does not say these, llama.cpp takes the width over the heads.
        sizes = {f"{architecture}.{name}": head_dim for name in ("attention.value_length", "rope.dimension_count")}
        write_gguf(self.gguf, folder, more=metadata({**tokenizer, **sizes}))
        adapter = LoRAAdapter.for_model(load_model(folder).model, LoRAAdapterConfig(4, 8.0, 0.0, tuple(TargetModule)))
        rng = np.random.default_rng(0)
        for _, layer in adapter.layers():
            for factor, size in ((layer.lora_a(), 0.3), (layer.lora_b(), 0.3)):
                factor.set(Tensor.from_numpy(size * rng.standard_normal(factor.shape).astype(np.float32)))
        adapter.save(self.peft, "some/model")

    def ours(self, tokens: list[int], scale: float) -> LogProbs:
        """Of each token that follows the prompt, with the adapter's scale times ``scale``."""
        model = load_model(self.folder).model
        adapter = LoRAAdapter.load(self.peft, model)
        for _, layer in adapter.layers():
            layer.lora_b().set(layer.lora_b() * scale)
        model.apply_adapter(adapter)
        logits = model.forward(Tensor.new([[*PROMPT, *tokens][:-1]])).numpy()[0, len(PROMPT) - 1 :].astype(np.float64)
        found: LogProbs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return found

    def compare(self, adapter: Path, atol: float = ATOL) -> None:
        """Load base and adapter into llama.cpp, and compare with, without and at half of the adapter's scale."""
        scales = (1.0, 0.0, 0.5)
        process = llama_cpp(self.gguf, adapter, scales)
        assert process.returncode == 0, process.stderr
        for scale, answer in zip(scales, json.loads(process.stdout), strict=True):
            tokens, expected = answer["tokens"], self.ours(answer["tokens"], scale)
            np.testing.assert_allclose(np.array(answer["logprobs"]), expected, rtol=0, atol=atol)
            for other in {*scales} - {scale}:
                assert np.abs(expected - self.ours(tokens, other)).max() > LEAST_CHANGE


def llama_cpp(base: Path, adapter: Path, scales: tuple[float, ...] = (1.0,)) -> subprocess.CompletedProcess[str]:
    """What ``ask_llama_cpp.py`` says to these files."""
    asked = {"prompt": PROMPT, "count": 12, "vocabulary": 64, "scales": scales}
    command = [sys.executable, str(Path(__file__).with_name("ask_llama_cpp.py")), str(base), str(adapter)]
    return subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=600)


@pytest.fixture
def base_of(tmp_path: Path, tiny_model_dir: Callable[..., Path], tiny_metadata: dict[str, Any]) -> Callable[..., Base]:
    """A function that makes a base of a model type with settings."""
    return lambda model_type, **settings: Base(tiny_model_dir(model_type, **settings), tmp_path, tiny_metadata)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", {}),
        ("llama", {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}),
        ("llama", {"num_key_value_heads": 4, "attention_bias": True, "tie_word_embeddings": False}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
    ],
)
def test_every_architecture(
    tmp_path: Path, base_of: Callable[..., Base], model_type: str, settings: dict[str, Any]
) -> None:
    base = base_of(model_type, **settings)
    gguf_adapter.save(tmp_path / "a.gguf", read(base.peft), base.config)
    base.compare(tmp_path / "a.gguf")


@pytest.mark.parametrize("stabilised", [False, True])
def test_ranks_and_scales_of_modules(tmp_path: Path, base_of: Callable[..., Base], stabilised: bool) -> None:
    """Quotients of scales by powers of two, and alpha over the root of the rank, which B takes up with rounding."""
    base = base_of("llama")
    ranks, scales = {Q0: 2, K0: 1, "model.layers.1.mlp.down_proj": 16}, {Q0: 4.0, K0: 0.5}
    factors = random_factors(tuple(SIZES), ranks=ranks, scales=scales)
    write(base.peft, random_adapter(factors), "peft")
    if stabilised:
        change_config(base.peft, lambda config: config.update(use_rslora=True))
    said = gguf_adapter.save(tmp_path / "a.gguf", read(base.peft), base.config, fold_scales=stabilised)
    assert any("rounded once" in note for note in said.notes) is stabilised
    base.compare(tmp_path / "a.gguf")


def test_f16(tmp_path: Path, base_of: Callable[..., Base]) -> None:
    """A and B are rounded to F16's 11 bits, and so is what llama.cpp multiplies them with: ten times what was seen."""
    base = base_of("llama")
    gguf_adapter.save(tmp_path / "a.gguf", read(base.peft), base.config, "f16")
    base.compare(tmp_path / "a.gguf", atol=2e-2)


def test_some_modules_of_one_block(tmp_path: Path, base_of: Callable[..., Base]) -> None:
    base = base_of("llama")
    factors = random_factors(("self_attn.q_proj", "mlp.up_proj"), layers=(1,))
    write(base.peft, random_adapter(factors, layers=(1,)), "peft")
    gguf_adapter.save(tmp_path / "a.gguf", read(base.peft), base.config)
    base.compare(tmp_path / "a.gguf")


def test_an_adapter_of_another_architecture_is_not_loaded(tmp_path: Path, base_of: Callable[..., Base]) -> None:
    gguf_adapter.save(tmp_path / "a.gguf", random_adapter(), base_of("qwen2").config)
    process = llama_cpp(base_of("llama").gguf, tmp_path / "a.gguf")
    assert process.returncode == 1
    assert "model arch and LoRA arch mismatch" in process.stderr

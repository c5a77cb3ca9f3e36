"""GGUF adapters: read back by the ``gguf`` package, and held against base tensors in llama.cpp's row order."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.error import CheckpointError
from metal_candle.formats.gguf import read_gguf_header, read_tensor_bytes
from metal_candle.models.config import ModelConfig
from metal_candle.models.load import load_config
from metal_candle.models.weights.gguf import permute, unpermute
from metal_candle.training.formats import gguf_adapter
from metal_candle.training.formats.stored import Factors

import gguf
import mlx.core as mx
import numpy as np
import pytest
from adapters import RANK, SCALE, SIZES, random_adapter, random_factors

Folder = Callable[..., Path]
Q0, K0 = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def config(folder: Path) -> ModelConfig:
    return load_config(folder)


def tensors_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors as the ``gguf`` package reads them, row-major."""
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def field(path: Path, name: str) -> Any:
    found = gguf.GGUFReader(path).get_field(name)
    return None if found is None else found.contents()


def as_llama_cpp(tensors: dict[str, np.ndarray[Any, Any]], name: str, alpha: float) -> np.ndarray[Any, Any]:
    """The delta ``(out, in)`` as llama.cpp has it: alpha over the rank of B, B times A."""
    a, b = (tensors[f"{name}.weight.{each}"].astype(np.float64) for each in ("lora_a", "lora_b"))
    found: np.ndarray[Any, Any] = (alpha / b.shape[1]) * (b @ a)
    return found


def delta(factors: Factors) -> np.ndarray[Any, Any]:
    a, b = (np.array(each.astype(mx.float32)).astype(np.float64) for each in (factors.a, factors.b))
    found: np.ndarray[Any, Any] = factors.scale * (a @ b).T
    return found


@pytest.mark.parametrize(("model_type", "architecture"), [("llama", "llama"), ("mistral", "llama"), ("qwen2", "qwen2")])
def test_the_gguf_package_reads_it_back(
    tmp_path: Path, tiny_model_dir: Folder, model_type: str, architecture: str
) -> None:
    file = tmp_path / "adapter.gguf"
    factors = random_factors(tuple(SIZES))
    gguf_adapter.save(file, random_adapter(factors), config(tiny_model_dir(model_type)))
    expected = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": architecture}
    assert {name: field(file, name) for name in expected} == expected
    assert field(file, "general.name") == "some/model"
    assert field(file, gguf.Keys.Adapter.LORA_ALPHA) == SCALE * RANK
    tensors = tensors_of(file)
    assert len(tensors) == 2 * len(factors)
    for path, each in factors.items():
        _, _, layer, inner = path.split(".", 3)
        name = f"blk.{layer}.{NAMES[inner]}"
        assert tensors[f"{name}.weight.lora_a"].dtype == np.float32
        np.testing.assert_array_equal(tensors[f"{name}.weight.lora_a"], np.array(each.a).T)
        rows = np.array(each.b).T
        heads = {"q_proj": 4, "k_proj": 2}.get(inner.split(".")[1])
        if heads and architecture == "llama":
            # Row i of a head's first half stands at 2 i, row i of its second half behind it.
            order = [head * 8 + half * 4 + i for head in range(heads) for i in range(4) for half in range(2)]
            rows = rows[order]
        np.testing.assert_array_equal(tensors[f"{name}.weight.lora_b"], rows)


def test_ranks_of_modules_stay_and_alphas_go_into_b(tmp_path: Path, tiny_model_dir: Folder) -> None:
    file = tmp_path / "adapter.gguf"
    # Q0: rank 2 at scale 4 is alpha 8, as the others' 4 at 2; K0: alpha 4, half of it.
    factors = random_factors(tuple(SIZES), ranks={Q0: 2}, scales={Q0: 4.0, K0: 1.0})
    said = gguf_adapter.save(file, random_adapter(factors), config(tiny_model_dir()))
    assert said.notes == ("the scales of 1 modules are in their B, exactly (by powers of two)",)
    tensors = tensors_of(file)
    assert tensors["blk.0.attn_q.weight.lora_a"].shape == (2, 32)
    for name, path, heads in (("blk.0.attn_q", Q0, 4), ("blk.0.attn_k", K0, 2)):
        found = as_llama_cpp(tensors, name, field(file, gguf.Keys.Adapter.LORA_ALPHA))
        np.testing.assert_allclose(unpermute(found, heads), delta(factors[path]), rtol=1e-12, atol=1e-12)


def test_a_scale_of_its_own_that_is_no_power_of_two_apart(tmp_path: Path, tiny_model_dir: Folder) -> None:
    adapter = random_adapter(random_factors(scales={Q0: SCALE / 3}))
    with pytest.raises(CheckpointError.InvalidFormat, match="GGUF holds one for all"):
        gguf_adapter.save(tmp_path / "a.gguf", adapter, config(tiny_model_dir()))
    gguf_adapter.save(tmp_path / "a.gguf", adapter, config(tiny_model_dir()), fold_scales=True)
    found = as_llama_cpp(tensors_of(tmp_path / "a.gguf"), "blk.0.attn_q", SCALE * RANK)
    # B is rounded once, to float32's half unit in the last place
    np.testing.assert_allclose(unpermute(found, 4), delta(adapter.factors[Q0]), rtol=0, atol=1e-6)


def test_f16_and_its_range(tmp_path: Path, tiny_model_dir: Folder) -> None:
    base = config(tiny_model_dir())
    factors = random_factors()
    gguf_adapter.save(tmp_path / "a.gguf", random_adapter(factors), base, "f16")
    stored = tensors_of(tmp_path / "a.gguf")["blk.0.attn_v.weight.lora_b"]
    path = "model.layers.0.self_attn.v_proj"
    np.testing.assert_array_equal(stored, np.array(factors[path].b).T.astype(np.float16))
    factors[Q0] = Factors(factors[Q0].a * 1e6, factors[Q0].b, SCALE)
    with pytest.raises(CheckpointError.InvalidFormat, match=r"blk\.0\.attn_q\.weight\.lora_a has numbers beyond F16's"):
        gguf_adapter.save(tmp_path / "b.gguf", random_adapter(factors), base, "f16")
    with pytest.raises(CheckpointError.InvalidFormat, match="dtype is 'q8_0'; a GGUF adapter takes f32 or f16"):
        gguf_adapter.save(tmp_path / "b.gguf", random_adapter(), base, "q8_0")
    assert not (tmp_path / "b.gguf").exists()


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, tiny_model_dir: Folder) -> None:
    base = config(tiny_model_dir())
    factors = random_factors()
    foreign = {"transformer.h.0.attn.c_attn": factors[Q0]}
    with pytest.raises(CheckpointError.InvalidFormat, match=r"transformer\.h\.0\.attn\.c_attn is no projection"):
        gguf_adapter.save(tmp_path / "a.gguf", random_adapter(foreign), base)
    wider = {Q0: Factors(factors[Q0].a, mx.ones((RANK, 48)), SCALE)}
    with pytest.raises(
        CheckpointError.InvalidFormat, match=f"another model: {Q0} maps 32 to 48 there, 32 to 32 in the base"
    ):
        gguf_adapter.save(tmp_path / "a.gguf", random_adapter(wider), base)
    taller = random_adapter(random_factors(layers=(0, 1, 2)))
    with pytest.raises(CheckpointError.InvalidFormat, match=r"the base has 2 layers and no model\.layers\.2\."):
        gguf_adapter.save(tmp_path / "a.gguf", taller, base)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("heads", [1, 3, 9])
def test_permute_is_the_inverse_of_unpermute(heads: int) -> None:
    rows = np.arange(heads * 8 * 5).astype(np.uint8).reshape(heads * 8, 5)
    np.testing.assert_array_equal(unpermute(permute(rows, heads), heads), rows)
    np.testing.assert_array_equal(permute(unpermute(rows, heads), heads), rows)


@pytest.mark.slow
def test_a_delta_on_smollm2s_own_tensors(tmp_path: Path, smollm2_gguf: Path) -> None:
    """The base's rows in the file's order plus llama.cpp's delta are, put back in order, W plus scale · BA."""
    base = load_config(smollm2_gguf)
    header = read_gguf_header(smollm2_gguf)
    adapter = random_adapter(
        {
            path: Factors(
                mx.random.normal((576, RANK), key=mx.random.key(1)),
                mx.random.normal((RANK, out), scale=0.1, key=mx.random.key(2)),
                SCALE,
            )
            for path, out in ((Q0, 576), (K0, 192))
        }
    )
    gguf_adapter.save(tmp_path / "a.gguf", adapter, base)
    tensors = tensors_of(tmp_path / "a.gguf")
    for path, name, heads in ((Q0, "blk.0.attn_q", 9), (K0, "blk.0.attn_k", 3)):
        info = header.tensors[f"{name}.weight"]
        raw = gguf.quants.dequantize(
            read_tensor_bytes(smollm2_gguf, info).reshape(info.shape[0], -1), gguf.GGMLQuantizationType[info.type]
        )
        merged = raw + as_llama_cpp(tensors, name, SCALE * RANK)
        assert merged.shape == info.shape
        expected = unpermute(raw, heads) + delta(adapter.factors[path])
        np.testing.assert_allclose(unpermute(merged, heads), expected, rtol=0, atol=1e-12)
        assert math.isclose(np.linalg.norm(merged - raw), adapter.factors[path].norm(), rel_tol=1e-6)

"""GGUF: exact numbers, Hugging Face's names and row order, damaged files named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from metal_candle.error import ModelError
from metal_candle.formats.gguf import read_gguf_header
from metal_candle.formats.sharded import load_directory
from metal_candle.models.rotary import llama3_divisors
from metal_candle.models.weights.gguf import load_gguf, unpermute

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf_writer import Types, permute, write_gguf

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture
def to_gguf(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a Hugging Face folder as a GGUF with the ``gguf`` package."""
    return partial(write_gguf, tmp_path / "model.gguf")


# --- numbers ----------------------------------------------------------------------------------


def test_smollm2_equals_the_gguf_package_bit_by_bit(smollm2_gguf: Path) -> None:
    config, weights, _ = load_gguf(smollm2_gguf)
    tensors, data = read_gguf_header(smollm2_gguf).tensors, np.memmap(smollm2_gguf, np.uint8, "r")
    assert (config.head_dim(), config.num_kv_heads(), config.vocab_size) == (64, 3, 49152)
    assert (config.rms_norm_eps, config.rope_theta, config.tie_word_embeddings) == (1e-5, 1e5, True)
    assert len(weights) == 272
    assert sum(weight.size for weight in weights.values()) == 134_515_008
    assert all(weight.dtype == mx.float32 for weight in weights.values())

    def reference(name: str) -> np.ndarray[Any, Any]:
        tensor = tensors[name]
        packed = data[tensor.begin : tensor.end].reshape(tensor.shape[0], -1)
        return gguf.quants.dequantize(packed, Types[tensor.type]).reshape(tensor.shape)

    for theirs, ours, heads in [
        ("token_embd", "model.embed_tokens", 0),
        ("output_norm", "model.norm", 0),
        ("blk.0.attn_norm", "model.layers.0.input_layernorm", 0),
        ("blk.0.attn_q", "model.layers.0.self_attn.q_proj", 9),
        ("blk.17.attn_k", "model.layers.17.self_attn.k_proj", 3),
        ("blk.29.attn_v", "model.layers.29.self_attn.v_proj", 0),
        ("blk.5.attn_output", "model.layers.5.self_attn.o_proj", 0),
        ("blk.7.ffn_gate", "model.layers.7.mlp.gate_proj", 0),
        ("blk.8.ffn_up", "model.layers.8.mlp.up_proj", 0),
        ("blk.9.ffn_down", "model.layers.9.mlp.down_proj", 0),
    ]:
        given = np.array(weights[f"{ours}.weight"])
        given = permute(given, heads) if heads else given
        np.testing.assert_array_equal(given, reference(f"{theirs}.weight"), err_msg=ours)


def test_unpermute_undoes_the_converters_permutation() -> None:
    w = np.random.default_rng(0).integers(0, 255, (48, 5)).astype(np.uint8)
    np.testing.assert_array_equal(unpermute(permute(w, 3), 3), w)
    np.testing.assert_array_equal(unpermute(np.arange(8, dtype=np.uint8)[:, None], 1)[:, 0], [0, 2, 4, 6, 1, 3, 5, 7])


# --- whole models -----------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_architecture_comes_back(
    tiny_model_dir: Callable[..., Path], to_gguf: Callable[..., Path], model_type: str, tied: bool
) -> None:
    window = {"sliding_window": 16} if model_type == "mistral" else {}
    folder = tiny_model_dir(model_type, tie_word_embeddings=tied, **window)

    def more(writer: gguf.GGUFWriter) -> None:
        if window:
            writer.add_sliding_window(16)

    config, weights, _ = load_gguf(to_gguf(folder, more=more))
    expected = load_directory(folder)
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert mx.array_equal(weights[name], weight), name
    assert (config.model_type, config.tie_word_embeddings) == (model_type, tied)
    assert config.window(0) == window.get("sliding_window")


def test_llama_with_biases(tiny_model_dir: Callable[..., Path], to_gguf: Callable[..., Path]) -> None:
    folder = tiny_model_dir(attention_bias=True)
    config, weights, _ = load_gguf(to_gguf(folder))
    name = "model.layers.0.self_attn.q_proj.bias"
    assert config.attention_bias
    assert mx.array_equal(weights[name], load_directory(folder)[name])


@pytest.mark.parametrize("kind", [Types.Q4_0, Types.Q5_1, Types.Q8_0, Types.F16, Types.BF16])
def test_other_types_and_dtype(tiny_model_dir: Callable[..., Path], to_gguf: Callable[..., Path], kind: Types) -> None:
    folder = tiny_model_dir()
    name = "model.layers.1.mlp.down_proj.weight"
    original = np.array(load_directory(folder)[name])
    expected = gguf.quants.dequantize(gguf.quants.quantize(original, kind), kind)
    path = to_gguf(folder, kind)
    np.testing.assert_array_equal(np.array(load_gguf(path)[1][name]), expected)
    half = load_gguf(path, mx.float16)[1]
    assert {weight.dtype for weight in half.values()} == {mx.float16}
    assert mx.array_equal(half[name], mx.array(expected).astype(mx.float16))


def test_rope_scaling_of_the_metadata(tiny_model_dir: Callable[..., Path], to_gguf: Callable[..., Path]) -> None:
    def linear(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    def yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)

    folder = tiny_model_dir()
    config, _, _ = load_gguf(to_gguf(folder, more=linear))
    assert config.rope_scaling == {"rope_type": "linear", "factor": 4.0}
    with pytest.raises(ModelError.InvalidConfig, match="'yarn' is not supported"):
        load_gguf(to_gguf(folder, more=yarn))


def test_llama3_is_recognised_in_its_table(tiny_model_dir: Callable[..., Path], to_gguf: Callable[..., Path]) -> None:
    def table(values: np.ndarray[Any, Any]) -> Callable[[gguf.GGUFWriter], None]:
        return lambda writer: writer.add_tensor("rope_freqs.weight", values.astype(np.float32))

    folder = tiny_model_dir(rope_theta=5e5, head_dim=64)
    divisors = llama3_divisors(5e5, 64, LLAMA3)
    assert (divisors[0], divisors[-1]) == (1.0, 32.0)
    config, _, _ = load_gguf(to_gguf(folder, more=table(divisors)))
    assert config.rope_scaling == LLAMA3
    for other in (divisors + 0.1, divisors[:-1]):
        with pytest.raises(ModelError.InvalidConfig, match=r"rope_freqs\.weight is not Llama 3's"):
            load_gguf(to_gguf(folder, more=table(other)))


# --- what is refused --------------------------------------------------------------------------


def test_unsupported_tensor_types_are_named(tiny_model_dir: Callable[..., Path], to_gguf: Callable[..., Path]) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("odd", np.zeros((1, 18), np.uint8), raw_dtype=Types.IQ4_NL)

    path = to_gguf(tiny_model_dir(), more=more)
    with pytest.raises(ModelError.InvalidFormat, match="odd is IQ4_NL, which is not read; takes F32, F16"):
        load_gguf(path)


def test_unknown_architectures_and_tensors_are_named(
    tiny_model_dir: Callable[..., Path], to_gguf: Callable[..., Path]
) -> None:
    folder = tiny_model_dir()
    with pytest.raises(ModelError.InvalidConfig, match="unknown architecture 'gemma'; takes llama, qwen2, qwen3"):
        load_gguf(to_gguf(folder, architecture="gemma"))
    ghost = to_gguf(folder, more=lambda w: w.add_tensor("blk.0.ghost.weight", np.zeros(1, np.float32)))
    with pytest.raises(ModelError.InvalidConfig, match=r"blk\.0\.ghost\.weight have no place"):
        load_gguf(ghost)
    experts = to_gguf(folder, more=lambda w: w.add_expert_count(8))
    with pytest.raises(ModelError.InvalidConfig, match="a mixture of experts; takes dense models"):
        load_gguf(experts)
    rope = to_gguf(folder, more=lambda w: w.add_rope_dimension_count(4))
    with pytest.raises(ModelError.InvalidConfig, match=r"partial_rotary_factor is 0\.5"):
        load_gguf(rope)


def test_every_truncation_is_one_clear_error(
    tmp_path: Path, tiny_model_dir: Callable[..., Path], to_gguf: Callable[..., Path]
) -> None:
    whole = to_gguf(tiny_model_dir(), Types.Q8_0).read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [*range(0, 5000, 37), *range(5000, len(whole), 1999)]:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError.InvalidFormat) as raised:
            load_gguf(path)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_every_changed_byte_of_the_header_is_read_or_refused(
    tmp_path: Path, tiny_model_dir: Callable[..., Path], to_gguf: Callable[..., Path]
) -> None:
    """No damage may end in anything but an error of ours, or in a header."""
    whole = to_gguf(tiny_model_dir()).read_bytes()
    path = tmp_path / "damaged.gguf"
    refused = 0
    for position in range(0, 3000, 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            load_gguf(path)
        except ModelError:
            refused += 1
    assert refused > 100


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError.FileNotFound, match=r"absent\.gguf"):
        load_gguf(tmp_path / "absent.gguf")


def test_files_that_cannot_be_read_are_errors_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError.InvalidFormat, match="is a folder; takes a file"):
        load_gguf(tmp_path)
    with pytest.raises(ModelError.InvalidFormat, match="no file can have this name"):
        load_gguf(f"{tmp_path}/a\0.gguf")

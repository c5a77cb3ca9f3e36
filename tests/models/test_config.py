"""config.json: what is read, what is refused, what is written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metal_candle import Error
from metal_candle.error import ModelError
from metal_candle.models.config import ARCHITECTURES, ModelConfig

import pytest

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(**values: Any) -> ModelConfig:
    return ModelConfig.from_json(json.dumps({**SMALL, **values}))


def test_defaults_are_the_originals() -> None:
    config = read()
    assert (config.max_position_embeddings, config.rms_norm_eps, config.rope_theta) == (2048, 1e-6, 10000.0)
    assert config.torch_dtype is None
    assert config.model_type == "llama"
    assert (config.head_dim(), config.num_kv_heads()) == (8, 4)
    config.validate()


def test_keyword_constructor_and_comparison() -> None:
    assert ModelConfig(**SMALL) == read()
    assert ModelConfig(**SMALL, num_key_value_heads=2) != read()
    assert ModelConfig(**SMALL, num_key_value_heads=2).num_kv_heads() == 2


def test_unknown_keys_are_ignored_and_dtype_is_torch_dtype() -> None:
    assert read(something={"new": 1}, dtype="bfloat16").torch_dtype == "bfloat16"


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_model_type_and_architecture_give_each_other(model_type: str) -> None:
    assert read(model_type=model_type).architectures == [ARCHITECTURES[model_type]]
    assert read(architectures=[ARCHITECTURES[model_type]]).model_type == model_type


def test_biases_and_norms_follow_the_architecture() -> None:
    qwen2, qwen3, llama = (read(model_type=kind) for kind in ("qwen2", "qwen3", "llama"))
    assert [(c.qkv_bias, c.output_bias, c.qk_norm) for c in (qwen2, qwen3, llama)] == [
        (True, False, False),
        (False, False, True),
        (False, False, False),
    ]
    biased = read(attention_bias=True)
    assert (biased.qkv_bias, biased.output_bias) == (True, True)


def test_absent_keys_mean_what_transformers_means() -> None:
    assert read(model_type="qwen3").head_dim() == 128
    assert read(model_type="mistral").sliding_window == 4096
    assert read(model_type="mistral", sliding_window=None).sliding_window is None


def test_sliding_window_per_layer() -> None:
    assert read(model_type="mistral", sliding_window=16).window(1) == 16
    assert read(model_type="llama", sliding_window=16).window(1) is None
    assert read(model_type="qwen2", sliding_window=16).window(1) is None
    some = read(model_type="qwen2", sliding_window=16, use_sliding_window=True, max_window_layers=1)
    assert [some.window(layer) for layer in range(2)] == [None, 16]
    named = read(model_type="qwen3", sliding_window=16, layer_types=["sliding_attention", "full_attention"])
    assert [named.window(layer) for layer in range(2)] == [16, None]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        ({}, None),
        ({"type": "default"}, None),
        ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (LLAMA3, LLAMA3),
        ({**LLAMA3, "type": "llama3"}, LLAMA3),
    ],
)
def test_rope_scaling_spellings(given: dict[str, Any] | None, kept: dict[str, Any] | None) -> None:
    config = read(rope_scaling=given)
    assert config.rope_scaling == kept
    config.validate()


def test_rope_parameters_of_newer_transformers() -> None:
    config = read(rope_parameters={"rope_theta": 5e5, **LLAMA3})
    assert (config.rope_theta, config.rope_scaling) == (5e5, LLAMA3)
    assert read(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}).rope_scaling is None


def test_eos_may_be_one_several_or_none() -> None:
    assert read(eos_token_id=2).eos_token_ids() == {2}
    assert read(eos_token_id=[2, 0]).eos_token_ids() == {0, 2}
    assert read().eos_token_ids() == frozenset()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("more", [{}, {"head_dim": 16, "rope_scaling": LLAMA3, "eos_token_id": [1, 2]}])
def test_written_json_reads_back(model_type: str, more: dict[str, Any]) -> None:
    config = read(model_type=model_type, sliding_window=None, tie_word_embeddings=True, **more)
    again = ModelConfig.from_json(config.to_json())
    config.explicit_head_dim = config.head_dim()  # which the file always says
    assert again == config
    again.validate()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt_neox"}, r"unknown architecture 'gpt_neox'; takes llama, mistral, qwen2, qwen3"),
        ({"architectures": ["FooForCausalLM"]}, "unknown architecture 'FooForCausalLM'"),
        ({"vocab_size": 0}, "vocab_size is 0; takes more than 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"hidden_size": 30}, "hidden_size 30 is not divisible by num_attention_heads 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not divisible by num_key_value_heads 3"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"head_dim": 7}, "head_dim is 7; takes an even number"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; takes 'silu'"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn' is not supported; takes default, linear"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "'linear': factor is None; takes a number above 0"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": "a"}}, "low_freq_factor is 'a'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; takes 1.0"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 2 layers"),
    ],
)
def test_validate_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError.InvalidConfig, match=message):
        read(**values).validate()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config: broken JSON at line 1"),
        ('{"a": 1,\n "b": }', "config: broken JSON at line 2"),
        ("[1]", "holds a JSON list; takes an object"),
        ("{}", "vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads missing"),
        (json.dumps({**SMALL, "vocab_size": "many"}), "vocab_size is 'many'; takes int"),
        (json.dumps({**SMALL, "vocab_size": True}), "vocab_size is True; takes int"),
        (json.dumps({**SMALL, "vocab_size": 1.5}), "vocab_size is 1.5; takes int"),
        (json.dumps({**SMALL, "tie_word_embeddings": "yes"}), "tie_word_embeddings is 'yes'; takes bool"),
        (json.dumps({**SMALL, "eos_token_id": ["a"]}), "eos_token_id is 'a'"),
        ("[" * 100_000, "config: "),
    ],
)
def test_malformed_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ModelError.InvalidConfig, match=message) as raised:
        ModelConfig.from_json(text)
    assert isinstance(raised.value, Error)
    assert "\n" not in str(raised.value)


def test_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError.InvalidConfig, match=r"absent\.json: No such file"):
        ModelConfig.from_file(tmp_path / "absent.json")
    with pytest.raises(ModelError.FileNotFound, match=r"config\.json"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError.InvalidConfig, match=r"config\.json: not UTF-8 text at byte 0"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "model_type": "mamba"}))
    with pytest.raises(ModelError.InvalidConfig, match=r"config\.json: unknown architecture 'mamba'"):
        ModelConfig.from_directory(tmp_path)

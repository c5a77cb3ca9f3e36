"""Random numbers and examples, the same in every run; models for tests: the real SmolLM2, fetched once into the cache,
and tiny random ones written on demand.

``pytest --hypothesis-profile=explore --random-seed=7`` draws others.
"""

from __future__ import annotations

import json
import os
import random
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Every rewrite pass is checked in every test; a process that a test starts inherits it.
os.environ.setdefault("METAL_CANDLE_CHECK", "1")
# Beside other workers a BLAS's threads would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from metal_candle.formats import safetensors, sharded
from metal_candle.models import fetch
from metal_candle.models.config import ModelConfig
from metal_candle.models.tokenizer import Tokenizer

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# A test fails because something has changed, not because of what was drawn, nor because the machine is busy: generating
# takes how long it takes.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", settings.get_profile("explore"), database=None, derandomize=True)
settings.load_profile("fixed")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--random-seed", type=int, default=1234, help="what every test seeds the random generators with")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed all generators, before any fixture draws: what a test draws depends on no other test."""
    seed = item.config.getoption("--random-seed")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    mx.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The path of SmolLM2-135M-Instruct's GGUF, fetched into the cache when it is not there."""
    return fetch.resolve("smollm2")


@pytest.fixture(scope="session")
def tiny_metadata() -> dict[str, Any]:
    """GGUF metadata of a tokenizer of 64 tokens: lower case, digits, some punctuation, three merges."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    plain = [*string.ascii_lowercase, *string.digits, *".,!?:;'-+=()", "Ġ", "Ċ"]
    merges = ["t h", "th e", "a n", "i n", "Ġ a", "e r", "o n", "r e", "o r", "e n", "a t"]
    tokens = special + plain + [merge.replace(" ", "") for merge in merges]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(special) + [1] * (len(tokens) - len(special)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_metadata: dict[str, Any]) -> Callable[..., Path]:
    """A function that writes a random 2-layer model as a Hugging Face folder, tokenizer included.

    ``model_type`` is llama, mistral, qwen2 or qwen3; ``shards`` how many files; ``settings`` override what
    ``config.json`` says. Each call writes a new folder, which the test may damage.
    """

    def write(model_type: str = "llama", shards: int = 1, seed: int = 0, **settings: Any) -> Path:
        folder = tmp_path_factory.mktemp(f"tiny-{model_type}")
        sizes: dict[str, Any] = {
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": None,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        }
        values = {**sizes, **settings, "model_type": model_type}
        config = ModelConfig.from_dict(values, "tiny_model_dir").validated("tiny_model_dir")
        weights = random_weights(config, seed)
        (folder / "config.json").write_text(config.to_json())
        if shards == 1:
            safetensors.save(folder / "model.safetensors", weights, safetensors.PT)
        else:
            save_sharded(folder, weights, shards)
        Tokenizer.from_gguf(tiny_metadata).save(folder)
        return folder

    return write


def random_weights(config: ModelConfig, seed: int) -> dict[str, mx.array]:
    """Every tensor of the network that ``config`` describes: norms near one, the rest small."""
    hidden, inner, d = config.hidden_size, config.intermediate_size, config.head_dim()
    q, kv = config.num_attention_heads * d, config.num_kv_heads() * d
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for name, rows, columns, bias in [
            ("self_attn.q_proj", q, hidden, config.qkv_bias),
            ("self_attn.k_proj", kv, hidden, config.qkv_bias),
            ("self_attn.v_proj", kv, hidden, config.qkv_bias),
            ("self_attn.o_proj", hidden, q, config.output_bias),
            ("mlp.gate_proj", inner, hidden, config.mlp_bias),
            ("mlp.up_proj", inner, hidden, config.mlp_bias),
            ("mlp.down_proj", hidden, inner, config.mlp_bias),
        ]:
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{prefix}.{name}.bias"] = (rows,)
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        if config.qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (d,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (d,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    return {
        name: mx.random.normal(shape, scale=0.1, key=key) + ("norm" in name)
        for (name, shape), key in zip(shapes.items(), keys)
    }


def save_sharded(folder: Path, weights: dict[str, mx.array], shards: int) -> None:
    """Write the weights as several files with an index, as transformers does."""
    names = list(weights)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}
        safetensors.save(folder / file, part, safetensors.PT)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": weight_map}
    (folder / sharded.INDEX).write_text(json.dumps(index))

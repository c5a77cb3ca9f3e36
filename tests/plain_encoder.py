"""BERT and MPNet in NumPy float64, written straight from the papers: what the encoders are compared with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = Any

BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "norm": "attention.output.LayerNorm",
}
MPNET = {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "output": "attention.attn.o",
    "norm": "attention.LayerNorm",
}


def shapes(kind: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Every tensor of the network by its name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    if kind == "bert":
        found["embeddings.token_type_embeddings.weight"] = (config.type_vocab_size, hidden)
    else:
        buckets = config.relative_attention_num_buckets
        found["encoder.relative_attention_bias.weight"] = (buckets, config.num_attention_heads)
    names = BERT if kind == "bert" else MPNET
    for i in range(config.num_hidden_layers):
        path = f"encoder.layer.{i}"
        for part in ("query", "key", "value", "output"):
            found[f"{path}.{names[part]}.weight"], found[f"{path}.{names[part]}.bias"] = (hidden, hidden), (hidden,)
        found[f"{path}.intermediate.dense.weight"] = (inner, hidden)
        found[f"{path}.intermediate.dense.bias"] = (inner,)
        found[f"{path}.output.dense.weight"], found[f"{path}.output.dense.bias"] = (hidden, inner), (hidden,)
        for norm in (names["norm"], "output.LayerNorm"):
            found[f"{path}.{norm}.weight"], found[f"{path}.{norm}.bias"] = (hidden,), (hidden,)
    return found


def random_weights(kind: str, config: Any, seed: int = 0) -> dict[str, Array]:
    """Float32 numbers for ``shapes``: norms near one, the rest small."""
    random = np.random.default_rng(seed)
    return {
        name: (random.normal(size=shape) * 0.2 + name.endswith("LayerNorm.weight")).astype(np.float32)
        for name, shape in shapes(kind, config).items()
    }


def hidden_states(kind: str, config: Any, weights: dict[str, Array], ids: list[int], types: list[int]) -> Array:
    """The last hidden states ``(t, hidden)`` of one text without padding."""
    names, w = BERT if kind == "bert" else MPNET, {name: value.astype(np.float64) for name, value in weights.items()}
    t, heads = len(ids), config.num_attention_heads
    size = config.hidden_size // heads

    def layer_norm(x: Array, path: str) -> Array:
        x = x - x.mean(-1, keepdims=True)
        return (
            x / np.sqrt((x**2).mean(-1, keepdims=True) + config.layer_norm_eps) * w[f"{path}.weight"]
            + w[f"{path}.bias"]
        )

    def linear(x: Array, path: str) -> Array:
        return x @ w[f"{path}.weight"].T + w[f"{path}.bias"]

    first = 0 if kind == "bert" else config.pad_token_id + 1
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][first : first + t]
    bias = np.zeros((heads, t, t))
    if kind == "bert":
        x = x + w["embeddings.token_type_embeddings.weight"][types]
    else:
        table = w["encoder.relative_attention_bias.weight"]
        for q in range(t):
            for k in range(t):
                bias[:, q, k] = table[bucket(k - q)]
    x = layer_norm(x, "embeddings.LayerNorm")
    for i in range(config.num_hidden_layers):
        path = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{path}.{names[part]}").reshape(t, heads, size).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(size) + bias)
        seen = (scores / scores.sum(-1, keepdims=True)) @ v
        merged = linear(seen.transpose(1, 0, 2).reshape(t, -1), f"{path}.{names['output']}")
        x = layer_norm(merged + x, f"{path}.{names['norm']}")
        inner = linear(x, f"{path}.intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = layer_norm(linear(inner, f"{path}.output.dense") + x, f"{path}.output.LayerNorm")
    return x


# What transformers' MPNet gives, of 32 buckets: the first distance of each one from the eighth on.
_BEGINS = (8, 12, 16, 23, 32, 46, 64, 91)


def bucket(distance: int) -> int:
    """The bucket of ``key - query``: a half for keys behind, one for those up to the query itself."""
    size = abs(distance)
    near = size if size < 8 else 7 + sum(size >= begin for begin in _BEGINS)
    return near + 16 * (distance > 0)

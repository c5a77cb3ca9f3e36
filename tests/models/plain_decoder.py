"""The decoders in NumPy float64, from the papers, position by position: what ``Decoder`` is compared with."""

from __future__ import annotations

import math
from typing import Any

from metal_candle.models.config import ModelConfig

import numpy as np

Array = np.ndarray[Any, Any]


def frequencies(config: ModelConfig) -> list[float]:
    size, scaling = config.head_dim(), config.rope_scaling
    plain = [config.rope_theta ** (-2 * i / size) for i in range(size // 2)]
    if scaling is None:
        return plain
    if scaling["rope_type"] == "linear":
        return [f / scaling["factor"] for f in plain]
    # Llama 3.1: long waves are stretched by the factor, short ones kept, those between blended.
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    scaled = []
    for f in plain:
        turns = context * f / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        scaled.append(share * f + (1 - share) * f / scaling["factor"])
    return scaled


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def rotate(x: Array, angles: list[float], position: int) -> Array:
    """One head's vector: its two halves are the real and imaginary parts of numbers that are turned."""
    half = len(angles)
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * np.array(angles))
    return np.concatenate([turned.real, turned.imag])


def logits(config: ModelConfig, weights: dict[str, Array], ids: list[int]) -> Array:
    """The logits ``(t, vocabulary)`` of one sequence, in float64."""
    w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    heads, kv, size, eps = (
        config.num_attention_heads,
        config.num_kv_heads(),
        config.head_dim(),
        config.rms_norm_eps,
    )
    angles = frequencies(config)
    x = w["model.embed_tokens.weight"][ids]

    def project(name: str, value: Array) -> Array:
        return value @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    for layer in range(config.num_hidden_layers):
        path = f"model.layers.{layer}"
        normed = rms_norm(x, w[f"{path}.input_layernorm.weight"], eps)
        q = project(f"{path}.self_attn.q_proj", normed).reshape(len(ids), heads, size)
        k = project(f"{path}.self_attn.k_proj", normed).reshape(len(ids), kv, size)
        v = project(f"{path}.self_attn.v_proj", normed).reshape(len(ids), kv, size)
        if config.qk_norm:
            q = rms_norm(q, w[f"{path}.self_attn.q_norm.weight"], eps)
            k = rms_norm(k, w[f"{path}.self_attn.k_norm.weight"], eps)
        window = config.window(layer) or len(ids)
        mixed = np.zeros((len(ids), heads, size))
        for t in range(len(ids)):
            seen = range(max(0, t - window + 1), t + 1)
            for head in range(heads):
                group = head // (heads // kv)
                query = rotate(q[t, head], angles, t)
                scores = np.array([query @ rotate(k[s, group], angles, s) for s in seen]) / math.sqrt(size)
                chances = np.exp(scores - scores.max())
                mixed[t, head] = (chances / chances.sum()) @ v[list(seen), group]
        x = x + project(f"{path}.self_attn.o_proj", mixed.reshape(len(ids), heads * size))
        normed = rms_norm(x, w[f"{path}.post_attention_layernorm.weight"], eps)
        gate, up = project(f"{path}.mlp.gate_proj", normed), project(f"{path}.mlp.up_proj", normed)
        x = x + project(f"{path}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
    x = rms_norm(x, w["model.norm.weight"], eps)
    head = w["model.embed_tokens.weight"] if config.tie_word_embeddings else w["lm_head.weight"]
    return x @ head.T

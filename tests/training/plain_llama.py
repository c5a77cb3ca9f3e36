"""A Llama with LoRA in plain MLX, written straight from the papers: what the trainer is compared with."""

from __future__ import annotations

from typing import Any

from metal_candle.models.config import ModelConfig

import mlx.core as mx

Weights = dict[str, mx.array]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    return x * mx.rsqrt(mx.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rope(x: mx.array, theta: float) -> mx.array:
    size = x.shape[-1]
    angles = mx.arange(x.shape[2])[:, None] * theta ** (-mx.arange(0, size, 2) / size)
    a, b = x[..., : size // 2], x[..., size // 2 :]
    return mx.concatenate([a * mx.cos(angles) - b * mx.sin(angles), a * mx.sin(angles) + b * mx.cos(angles)], axis=-1)


def logits(config: ModelConfig, weights: Weights, lora: Weights, scale: float, ids: mx.array) -> mx.array:
    heads, kv, size = config.num_attention_heads, config.num_kv_heads(), config.head_dim()
    batch, length = ids.shape
    x = weights["model.embed_tokens.weight"][ids]

    def project(name: str, value: mx.array) -> mx.array:
        out = value @ weights[f"{name}.weight"].T
        if f"{name}.a" in lora:
            out = out + scale * ((value @ lora[f"{name}.a"]) @ lora[f"{name}.b"])
        return out

    for i in range(config.num_hidden_layers):
        path = f"model.layers.{i}"
        h = rms_norm(x, weights[f"{path}.input_layernorm.weight"], config.rms_norm_eps)
        q, k, v = (
            project(f"{path}.self_attn.{name}_proj", h).reshape(batch, length, count, size).transpose(0, 2, 1, 3)
            for name, count in (("q", heads), ("k", kv), ("v", kv))
        )
        q, k = rope(q, config.rope_theta), rope(k, config.rope_theta)
        k, v = mx.repeat(k, heads // kv, axis=1), mx.repeat(v, heads // kv, axis=1)
        scores = q @ k.swapaxes(-1, -2) / size**0.5
        scores = mx.where(mx.tri(length, dtype=mx.bool_), scores, -mx.inf)
        h = (mx.softmax(scores, axis=-1) @ v).transpose(0, 2, 1, 3).reshape(batch, length, -1)
        x = x + project(f"{path}.self_attn.o_proj", h)
        h = rms_norm(x, weights[f"{path}.post_attention_layernorm.weight"], config.rms_norm_eps)
        gate, up = project(f"{path}.mlp.gate_proj", h), project(f"{path}.mlp.up_proj", h)
        x = x + project(f"{path}.mlp.down_proj", gate * mx.sigmoid(gate) * up)
    return rms_norm(x, weights["model.norm.weight"], config.rms_norm_eps) @ weights["model.embed_tokens.weight"].T


def mean_loss(lora: Weights, targets: mx.array, mask: mx.array, **arguments: Any) -> mx.array:
    """Mean over the masked positions; the other arguments as ``logits`` takes them."""
    scores = logits(lora=lora, **arguments)
    chosen = mx.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    losses = mx.logsumexp(scores, axis=-1) - chosen
    return (losses * mask).sum() / mask.sum()


def adamw(
    params: Weights, grads: Weights, m: Weights, v: Weights, step: int, rate: float, decay: float
) -> tuple[Weights, Weights, Weights]:
    """One update by the formulas of Loshchilov and Hutter, betas 0.9 and 0.999, eps 1e-8."""
    m = {name: 0.9 * m[name] + 0.1 * grads[name] for name in params}
    v = {name: 0.999 * v[name] + 0.001 * grads[name] ** 2 for name in params}
    new = {
        name: (1 - rate * decay) * params[name]
        - rate * (m[name] / (1 - 0.9**step)) / (mx.sqrt(v[name] / (1 - 0.999**step)) + 1e-8)
        for name in params
    }
    return new, m, v

"""Hugging Face folders as GGUF files, written with the ``gguf`` package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metal_candle.formats.sharded import load_directory
from metal_candle.models.config import ModelConfig

import gguf
import numpy as np

Types = gguf.GGMLQuantizationType
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
}


def permute(w: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's interleaving, as its converter applies it."""
    return w.reshape(heads, 2, len(w) // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def metadata(values: Mapping[str, Any]) -> Callable[[gguf.GGUFWriter], None]:
    """What adds these keys to a file: ``more`` of ``write_gguf``. Whole numbers become 32 bits without a sign."""

    def add(writer: gguf.GGUFWriter) -> None:
        for key, value in values.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            elif isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            else:
                writer.add_string(key, value)

    return add


def write_gguf(
    path: Path,
    folder: Path,
    kind: Types | Callable[[str], Types] = Types.F32,
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    architecture: str | None = None,
) -> Path:
    """Write ``folder`` to ``path``; matrices in blocks of ``kind``, which may depend on the name in the file."""
    config = ModelConfig.from_directory(folder)
    architecture = architecture or {"mistral": "llama"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_kv_heads())
    writer.add_key_length(config.head_dim())
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    more(writer)
    for name, weight in load_directory(folder).items():
        values, target = np.array(weight), name
        for ours, theirs in NAMES.items():
            target = target.replace(ours + ".", theirs + ".")
        if architecture == "llama" and "attn_q." in target:
            values = permute(values, config.num_attention_heads)
        if architecture == "llama" and "attn_k." in target:
            values = permute(values, config.num_kv_heads())
        own = kind if isinstance(kind, Types) else kind(target)
        as_is = values.ndim == 1 or own == Types.F32
        packed = values if as_is else gguf.quants.quantize(values, own)
        writer.add_tensor(target, packed, raw_dtype=None if as_is else own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

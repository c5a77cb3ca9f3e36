"""Models in GGUF files, as a configuration and weights with Hugging Face's names and row order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from ...error import ModelError
from ...error.text import first_few
from ...formats.ggml_blocks import BLOCKS, decode
from ...formats.gguf import GGUFHeader, GGUFTensor, read_gguf_header
from ...formats.reading import io_errors
from ..config import ModelConfig
from ..load_errors import model_file_errors
from ..rotary import llama3_divisors

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""The ``general.architecture``s that are read. Mistral and SmolLM2 files say ``llama``."""

_MODEL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
_PROJECTION = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<name>(?:self_attn|mlp)\..+_proj)")

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Stored: TypeAlias = Callable[[str, Bytes, str], Any]
"""What is made of a tensor, given its Hugging Face name, its rows of blocks and their type; ``None``: dequantise it."""


def load_gguf(
    path: str | PathLike[str], dtype: mx.Dtype = mx.float32, stored: Stored | None = None
) -> tuple[ModelConfig, dict[str, Any], dict[str, Any]]:
    """Read a model from a GGUF file: configuration, weights by Hugging Face name, metadata.

    The weights are dequantised to ``dtype``, one tensor at a time, as MLX arrays, except matrices of which ``stored``
    makes something else. Rows of q and k that llama.cpp interleaves for its own RoPE, in files of the ``llama``
    architecture, are put back in order first. Without an ``output.weight`` the embedding is the head. Raises as
    ``read_gguf_header``, ``ModelError.FileNotFound`` and ``ModelError.InvalidFormat`` where the file is not there or
    cannot be read, and ``ModelError.InvalidConfig`` for an architecture or a setting that no network here has.
    """
    path = Path(path)
    header, data = _opened(path)
    config = _config(path, header, data)
    interleaved = {}
    if header.metadata["general.architecture"] == "llama":
        interleaved = {"attn_q": config.num_attention_heads, "attn_k": config.num_kv_heads()}
    weights: dict[str, Any] = {}
    for name, target in _names(path, header, config):
        tensor = header.tensors[name]
        rows = _rows(data, tensor)
        if heads := interleaved.get(name.split(".")[-2]):
            if len(rows) != heads * config.head_dim():
                expected = (heads * config.head_dim(), *tensor.shape[1:])
                raise ModelError.ShapeMismatch(name=f"{path}: {name}", expected=expected, actual=tensor.shape)
            rows = unpermute(rows, heads)
        if stored is not None and len(tensor.shape) == 2:
            made = stored(target, rows, tensor.type)
            if made is not None:
                weights[target] = made
                continue
        weights[target] = mx.array(decode(rows, tensor.type).reshape(tensor.shape)).astype(dtype)
        mx.eval(weights[target])  # so that the float32 copies of all tensors never exist at once
    return config, weights, header.metadata


def read_gguf_config(path: str | PathLike[str]) -> ModelConfig:
    """The configuration of a model in a GGUF file alone. Raises as ``load_gguf``."""
    return _config(Path(path), *_opened(Path(path)))


def _opened(path: Path) -> tuple[GGUFHeader, Bytes]:
    with model_file_errors(), io_errors(path):
        return read_gguf_header(path), np.memmap(path, np.uint8, "r")


def gguf_shapes(path: str | PathLike[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of a GGUF file's tensors by Hugging Face name, from its header. Raises as ``load_gguf``."""
    path = Path(path)
    header, data = _opened(path)
    return {target: header.tensors[name].shape for name, target in _names(path, header, _config(path, header, data))}


def unpermute(rows: Bytes, heads: int) -> Bytes:
    """Undo llama.cpp's interleaving of each head's rows: pairs (2i, 2i+1) become (i, i + d/2) again.

    ``rows`` is ``(heads * d, n)``; whole rows move, so n may count numbers or packed bytes. The inverse of
    ``permute`` in llama.cpp's conversion from Hugging Face.
    """
    out, n = rows.shape
    pairs = rows.reshape(heads, out // heads // 2, 2, n)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(out, n)


def permute(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Interleave each head's rows as llama.cpp's conversion does for its RoPE: the inverse of ``unpermute``."""
    out, n = rows.shape
    halves = rows.reshape(heads, 2, out // heads // 2, n)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(out, n)


def gguf_name(path: str) -> str | None:
    """The GGUF name of a projection of a block, "blk.0.attn_q" of "model.layers.0.self_attn.q_proj", or ``None``."""
    match = _PROJECTION.fullmatch(path)
    part = {name: part for part, name in _LAYER_NAMES.items()}.get(match["name"]) if match else None
    return f"blk.{match['layer']}.{part}" if match and part else None


def _rows(data: Bytes, tensor: GGUFTensor) -> Bytes:
    """The tensor's bytes as ``(rows, bytes)``; a vector is a column, so that its elements are the rows."""
    of_blocks = BLOCKS[tensor.type].elements > 1 and len(tensor.shape) < 2  # whose elements cannot be cut apart
    rows = 1 if of_blocks or not tensor.shape else tensor.shape[0]
    return data[tensor.begin : tensor.end].reshape(rows, -1)


def _names(path: Path, header: GGUFHeader, config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Each tensor's name with its Hugging Face name; all that have none are reported at once."""
    unknown = []
    for name in header.tensors:
        stem, _, end = name.rpartition(".")
        if name == _ROPE_FACTORS:
            continue  # read into the configuration
        if stem in _MODEL_NAMES and end == "weight":
            yield name, f"{_MODEL_NAMES[stem]}.{end}"
            continue
        block, _, rest = stem.partition(".")
        layer, _, part = rest.partition(".")
        if block == "blk" and layer.isdecimal() and part in _LAYER_NAMES and end in ("weight", "bias"):
            yield name, f"model.layers.{layer}.{_LAYER_NAMES[part]}.{end}"
        else:
            unknown.append(name)
    if unknown:
        raise ModelError.InvalidConfig(
            reason=f"{path}: {first_few(unknown, 5)} have no place in a {config.model_type} decoder; takes plain ones"
        )


# --- configuration ----------------------------------------------------------------------------


def _config(path: Path, header: GGUFHeader, data: Bytes) -> ModelConfig:
    """The ``config.json`` that the metadata and the tensors' names amount to, validated."""
    metadata, tensors = header.metadata, header.tensors
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError.InvalidConfig(
            reason=f"{path}: unknown architecture {architecture!r}; takes {', '.join(ARCHITECTURES)}"
        )

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"{architecture}.{key}", default)

    def size(key: str, default: int | None = None) -> int:
        value = get(key, default)
        if type(value) is not int or value < 1:
            reason = f"{path}: metadata {architecture}.{key} is {value!r}; takes a whole number above 0"
            raise ModelError.InvalidConfig(reason=reason)
        return value

    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError.InvalidFormat(reason=f"{path}: no tensor token_embd.weight of two dimensions")
    if get("expert_count", 0):
        raise ModelError.InvalidConfig(reason=f"{path}: a mixture of experts; takes dense models")
    heads, hidden, window = (
        size("attention.head_count"),
        size("embedding_length"),
        get("attention.sliding_window"),
    )
    head_dim = size("attention.key_length", hidden // heads)
    theta = _shortest(get("rope.freq_base", 10000.0))
    values = {
        "model_type": "mistral" if architecture == "llama" and window else architecture,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(path, header, data, theta, head_dim),
        "partial_rotary_factor": size("rope.dimension_count", head_dim) / head_dim,
        "attention_bias": architecture != "qwen2" and "blk.0.attn_q.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "sliding_window": window,
        "use_sliding_window": bool(window) and architecture != "llama",
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float32",
    }
    return ModelConfig.from_dict(values, str(path)).validated(str(path))


def _shortest(value: Any) -> Any:
    """The shortest decimal of a float32: GGUF's 9.999999747378752e-06 was written as 1e-05."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope_scaling(path: Path, header: GGUFHeader, data: Bytes, theta: float, head_dim: int) -> dict[str, Any] | None:
    """RoPE scaling from ``<architecture>.rope.scaling.*``, or recognised in the table ``rope_freqs``."""
    prefix = f"{header.metadata['general.architecture']}.rope"
    factor = header.metadata.get(f"{prefix}.scaling.factor", header.metadata.get(f"{prefix}.scale_linear"))
    kind = header.metadata.get(f"{prefix}.scaling.type", "linear" if factor else "none")
    if kind != "none":
        return {"rope_type": kind, "factor": factor}
    if _ROPE_FACTORS not in header.tensors:
        return None
    tensor = header.tensors[_ROPE_FACTORS]
    table = decode(_rows(data, tensor), tensor.type).reshape(-1)
    # Llama 3.1 to 3.3 files carry the divisors of the frequencies, not the four numbers they came from.
    scaling = {
        "rope_type": "llama3",
        "factor": _shortest(float(table.max())),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = llama3_divisors(theta, head_dim, scaling)
    if expected.shape != table.shape or not np.allclose(table, expected, rtol=1e-4):
        raise ModelError.InvalidConfig(reason=f"{path}: {_ROPE_FACTORS} is not Llama 3's; takes no other")
    return scaling

"""LoRA adapters as GGUF files, which llama.cpp loads beside a GGUF model (``--lora``); written, not read.

Tensors ``blk.{i}.attn_q.weight.lora_a`` (rank, in) and ``.lora_b`` (out, rank), F32 or F16. There is one alpha for
all; a module's scale is alpha over its own rank. In files of the ``llama`` architecture the rows of q and k are
interleaved, and so are those of their B. Source: llama.cpp, ``convert_lora_to_gguf.py`` and ``llama-adapter.cpp``.
"""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import CheckpointError
from ...error.expect import FLAG, PATH, TEXT, a
from ...error.takes import takes
from ...formats.ggml_encode import encode
from ...formats.gguf_value import Value
from ...formats.gguf_writer import Entry, write_gguf
from ...models.config import ModelConfig
from ...models.weights.gguf import ARCHITECTURES, gguf_name, permute
from .stored import STORED, Factors, StoredAdapter, block_of
from .tensors import invalid
from .uniform import with_one_scale

KINDS = {"f32": "F32", "f16": "F16"}
"""The tensor types that llama.cpp computes adapters with."""

SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_COARSE = 0.01
"""The share of a factor's norm that F16 may take; where no number is below its normal ones, it takes 3e-4."""


@takes(path=PATH, adapter=STORED, base=a(ModelConfig), dtype=TEXT, fold_scales=FLAG)
def save(
    path: str | PathLike[str],
    adapter: StoredAdapter,
    base: ModelConfig,
    dtype: str = "f32",
    fold_scales: bool = False,
) -> StoredAdapter:
    """Write an adapter of a model with the configuration ``base``. Returns it as written.

    Ranks stay as they are. An alpha of a module's own goes into its B: see ``uniform``. ``dtype`` is "f32", exact, or
    "f16". Raises ``CheckpointError.SaveFailed``, and ``CheckpointError.InvalidFormat`` for an architecture that GGUF
    files of this package do not have, a module that is no projection of it, and numbers beyond F16.
    """
    if dtype not in KINDS:
        raise invalid(path, f"dtype is {dtype!r}; a GGUF adapter takes f32 or f16")
    adapter.expect_factors(path)
    architecture = "llama" if base.model_type == "mistral" else base.model_type
    if architecture not in ARCHITECTURES:
        raise invalid(path, f"the base is a {architecture!r}; takes {', '.join(ARCHITECTURES)}")
    uniform = _with_one_alpha(adapter, fold_scales)
    alpha = next(iter(uniform.factors.values())).alpha
    if not SMALLEST <= alpha <= LARGEST:  # an alpha of 0 counts as none there, and so as a scale of 1
        raise invalid(adapter.source, f"alpha is {alpha:g}; a GGUF adapter takes one within F32's range")
    metadata = {
        "general.architecture": Value.String(architecture),
        "general.type": Value.String("adapter"),
        "general.name": Value.String(adapter.base_model or architecture),
        "adapter.type": Value.String("lora"),
        "adapter.lora.alpha": Value.F32(alpha),
    }
    entries: list[Entry] = []
    for module, factors in uniform.factors.items():
        name = gguf_name(module)
        if name is None:
            raise invalid(adapter.source, f"{module} is no projection that a GGUF file of {architecture} has")
        a, b = _rows(module, factors, base, architecture == "llama")
        entries += [_entry(f"{name}.weight.lora_{which}", rows, dtype) for which, rows in (("a", a), ("b", b))]
    write_gguf(path, metadata, entries)
    return uniform


def _with_one_alpha(adapter: StoredAdapter, fold_scales: bool) -> StoredAdapter:
    """``with_one_scale`` where scale stands for alpha: that is what a GGUF file has one of."""
    as_alphas = {path: replace(each, scale=each.alpha) for path, each in adapter.factors.items()}
    one = with_one_scale(replace(adapter, scale=adapter.alpha, factors=as_alphas), "GGUF", fold_scales)
    factors = {path: replace(each, scale=each.scale / each.rank) for path, each in one.factors.items()}
    return replace(adapter, scale=one.scale / adapter.rank, factors=factors, notes=one.notes)


def _rows(
    module: str, factors: Factors, base: ModelConfig, interleaved: bool
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A (rank, in) and B (out, rank), its rows in the order of the base's file."""
    a, b = (np.array(mx.contiguous(each.T).astype(mx.float32)) for each in (factors.a, factors.b))
    found, wanted = (a.shape[1], b.shape[0]), _sizes(base)[module.rpartition(".")[2]]
    if found != wanted:
        raise _of_another_model(f"{module} maps {found[0]} to {found[1]} there, {wanted[0]} to {wanted[1]} in the base")
    if (block_of(module)[0] or 0) >= base.num_hidden_layers:
        raise _of_another_model(f"the base has {base.num_hidden_layers} layers and no {module}")
    heads = {"q_proj": base.num_attention_heads, "k_proj": base.num_kv_heads()}.get(module.rpartition(".")[2])
    return a, permute(b, heads) if heads is not None and interleaved else b


def _sizes(base: ModelConfig) -> dict[str, tuple[int, int]]:
    """What each projection of a block takes and gives."""
    hidden, inner = base.hidden_size, base.intermediate_size
    q, kv = base.num_attention_heads * base.head_dim(), base.num_kv_heads() * base.head_dim()
    attention = {"q_proj": (hidden, q), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (q, hidden)}
    return {**attention, "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}


def _of_another_model(reason: str) -> CheckpointError:
    return CheckpointError.InvalidFormat(reason=f"the adapter is for another model: {reason}")


def _entry(name: str, rows: np.ndarray[Any, Any], dtype: str) -> Entry:
    with np.errstate(over="ignore"):
        halves = rows.astype(np.float16) if dtype == "f16" else rows
    if not np.isfinite(halves).all():
        raise CheckpointError.InvalidFormat(reason=f"{name} has numbers beyond F16's range; takes f32")
    if np.linalg.norm(halves.astype(np.float64) - rows) > _COARSE * np.linalg.norm(rows.astype(np.float64)):
        reason = f"{name} has numbers below F16's normal ones, of which more than {_COARSE:.0%} is lost; takes f32"
        raise CheckpointError.InvalidFormat(reason=reason)
    return Entry(name, KINDS[dtype], rows.shape, encode(rows.reshape(-1), KINDS[dtype]))

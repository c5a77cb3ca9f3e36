"""LoRA adapters in metal-candle's layout: one safetensors file with ``layers.{i}.{module}.lora_a`` and ``.lora_b``.

A is (in, rank), B (rank, out), both unscaled. The crate's own files say neither alpha nor targets; ours add them to
the header, under ``adapter_config``, so that a file describes itself. The crate reads ours as its own: it ignores
what it does not know. metal-candle: ``metal_candle::training::checkpoint``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...error.expect import DICT, NUMBER, PATH, Kind, optional
from ...error.takes import takes
from ...files import parse_json_object
from ...formats import safetensors
from ...formats.safetensors import Reader
from ...models.target_module import TargetModule
from .stored import STORED, Factors, Format, StoredAdapter
from .tensors import a_dropout, a_factor, a_rank, invalid, layers_or_none, names_or_none, open_tensors, read_pairs

HEADER = "adapter_config"
"""The header's key for the JSON object with ``rank``, ``alpha``, ``dropout``, ``target_modules`` …"""

METADATA = "checkpoint_metadata"
"""The crate's key of the header: the JSON object of step, loss, learning rate and time."""

_FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<factor>[ab])")
_TARGETS = "|".join(target.value for target in TargetModule)
_PATH = re.compile(rf"model\.layers\.(?P<layer>\d+)\.(?:self_attn|mlp)\.(?P<name>{_TARGETS})")
_KEY = re.compile(rf"layers\.(?P<layer>\d+)\.(?P<name>{_TARGETS})")


def path_of(layer: int, target: TargetModule) -> str:
    """The module path of a projection of a block."""
    return f"model.layers.{layer}.{target.parent}.{target.value}"


def key_of(path: str) -> str:
    """metal-candle's key of a module path: "layers.0.q_proj"; the path itself where it is no target module's."""
    match = _PATH.fullmatch(path)
    return f"layers.{match['layer']}.{match['name']}" if match else path


def path_from_key(key: str) -> str:
    """The module path of metal-candle's key: the inverse of ``key_of``."""
    match = _KEY.fullmatch(key)
    target = TargetModule.from_name(match["name"]) if match else None
    return path_of(int(match["layer"]), target) if match and target else key


def is_key(name: str) -> bool:
    """Whether a tensor has one of the crate's own names."""
    return _KEY.fullmatch(name.removesuffix(".lora_a").removesuffix(".lora_b")) is not None


# --- writing ----------------------------------------------------------------------------------


def tensors_of(adapter: StoredAdapter) -> dict[str, mx.array]:
    """The tensors by metal-candle's names; dtypes are kept."""
    named = {}
    for path, factors in adapter.factors.items():
        named[f"{key_of(path)}.lora_a"] = factors.a
        named[f"{key_of(path)}.lora_b"] = factors.b
    return named


def header_of(adapter: StoredAdapter) -> dict[str, str]:
    """The header's entry that makes a file describe itself; ``ranks`` and ``scales`` are modules' own ones."""
    own = adapter.factors.items()
    ranks = {key_of(path): factors.rank for path, factors in own if factors.rank != adapter.rank}
    scales = {key_of(path): factors.scale for path, factors in own if factors.scale != adapter.scale}
    layers = adapter.chosen_layers()
    config = {
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "scale": adapter.scale,
        "dropout": adapter.dropout,
        "target_modules": None if adapter.targets is None else list(adapter.targets),
        "layers": None if layers is None else list(layers),
        "base_model": adapter.base_model,
        "ranks": ranks,
        "scales": scales,
    }
    return {HEADER: json.dumps(config, ensure_ascii=False)}


@takes(path=PATH, adapter=STORED, metadata=optional(DICT))
def save(path: str | PathLike[str], adapter: StoredAdapter, metadata: Mapping[str, str] | None = None) -> None:
    """Write the file, whole or not at all; ``metadata`` adds to the header, ``checkpoint_metadata`` say.

    Raises ``CheckpointError.SaveFailed``, and ``CheckpointError.InvalidFormat`` for an adapter of no modules.
    """
    adapter.expect_factors(path)
    safetensors.save(path, tensors_of(adapter), {**header_of(adapter), **(metadata or {})})


# --- reading ----------------------------------------------------------------------------------


@takes(path=Kind("a path", lambda path: PATH.holds(path) or isinstance(path, Reader)), alpha=optional(NUMBER))
def load(path: str | PathLike[str] | Reader, alpha: float | None = None) -> StoredAdapter:
    """Read a file, or one that is open, that ``save``, ``save_checkpoint`` or the crate wrote; dtypes are kept.

    ``alpha`` is for files that do not say theirs, as the crate's. Raises ``CheckpointError.LoadFailed`` for a damaged
    file and ``CheckpointError.InvalidFormat`` for one that is no such adapter, says no alpha where none is given, or
    contradicts itself or ``alpha``.
    """
    tensors = path if isinstance(path, Reader) else open_tensors(path)
    file, header = Path(tensors.source), tensors.header.metadata
    pairs: dict[str, tuple[mx.array, mx.array]] = {}
    for key, pair in read_pairs(tensors, _FACTOR, "layers.{i}.{module}.lora_a and .lora_b").items():
        module = path_from_key(key)
        if module in pairs:
            raise invalid(file, f"{module} is there twice, as {key_of(module)} and by its path; save the adapter again")
        pairs[module] = pair
    for module, (a, b) in pairs.items():
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            shapes = f"lora_a is {tuple(a.shape)}, lora_b {tuple(b.shape)}"
            raise invalid(file, f"{module}: {shapes}; takes (in, rank) and (rank, out)")
    if HEADER in header:
        return _described(file, pairs, _config(file, header), alpha)
    ranks = {a.shape[1] for a, _ in pairs.values()}
    if alpha is None:
        raise invalid(file, "does not say its alpha, as the crate's files do not; give it (alpha=16.0, --alpha 16)")
    if len(ranks) > 1:
        raise invalid(file, f"has ranks {sorted(ranks)} and no {HEADER} in its header; takes one rank")
    rank = ranks.pop()
    scale = a_factor(file, alpha, "alpha") / rank
    factors = {module: Factors(a, b, scale) for module, (a, b) in pairs.items()}
    return StoredAdapter(rank, scale, factors, format=Format.MetalCandle, source=str(file))


def base_model(file: Reader) -> str | None:
    """The model a file says it is for, ``None`` where it says none. Raises ``CheckpointError``."""
    header = file.header.metadata
    named = _config(Path(file.source), header).get("base_model") if HEADER in header else None
    return None if named is None else str(named)


def _config(file: Path, header: Mapping[str, str]) -> dict[str, Any]:
    return parse_json_object(header[HEADER], HEADER, lambda reason: invalid(file, f"header: {reason}"))


def _described(
    file: Path, pairs: Mapping[str, tuple[mx.array, mx.array]], config: Mapping[str, Any], alpha: float | None
) -> StoredAdapter:
    """The adapter that the header describes, with the header checked against the tensors."""
    rank = a_rank(file, config.get("rank"), f"{HEADER}.rank")
    general = a_factor(file, config.get("alpha"), f"{HEADER}.alpha")
    if alpha is not None and alpha != general:
        raise invalid(file, f"says alpha {general:g}, and {alpha:g} was given; leave it out")
    scale = a_factor(file, config.get("scale", general / rank), f"{HEADER}.scale")
    if not math.isclose(scale, general / rank, rel_tol=1e-12):  # which not every scale is to the last bit
        said = f"alpha {general:g} over rank {rank} is {general / rank:g}, scale is {scale:g}"
        raise invalid(file, f"{HEADER} contradicts itself: {said}")
    ranks, scales = (_by_module(file, pairs, config, name) for name in ("ranks", "scales"))
    factors = {}
    for module, (a, b) in pairs.items():
        wanted = a_rank(file, ranks.get(module, rank), f"{HEADER}.ranks[{key_of(module)!r}]")
        if a.shape[1] != wanted:
            raise invalid(file, f"{key_of(module)} has rank {a.shape[1]}, {HEADER} says {wanted}")
        own = a_factor(file, scales.get(module, scale), f"{HEADER}.scales[{key_of(module)!r}]")
        factors[module] = Factors(a, b, own)
    base = config.get("base_model")
    return StoredAdapter(
        rank=rank,
        scale=scale,
        factors=factors,
        dropout=a_dropout(file, config.get("dropout", 0.0), f"{HEADER}.dropout"),
        targets=names_or_none(file, config.get("target_modules"), f"{HEADER}.target_modules"),
        layers=layers_or_none(file, config.get("layers"), f"{HEADER}.layers"),
        base_model=None if base is None else str(base),
        format=Format.MetalCandle,
        source=str(file),
    )


def _by_module(file: Path, pairs: Mapping[str, object], config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The numbers of modules that have their own, by module path."""
    values = config.get(name) or {}
    if not isinstance(values, dict):
        raise invalid(file, f"{HEADER}.{name} is {values!r}; takes an object of module keys")
    if unknown := next((key for key in values if path_from_key(key) not in pairs), None):
        raise invalid(file, f"{HEADER}.{name} names {unknown}, which has no factors")
    return {path_from_key(key): value for key, value in values.items()}

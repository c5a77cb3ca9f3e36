"""LoRA adapters in PEFT's layout: a folder of ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT stores A as (rank, in) and B as (out, rank) under ``base_model.model.<module path>.lora_A.weight`` and
``….lora_B.weight``; here A is (in, rank) and B is (rank, out), so both are transposed on the way.
Layout and semantics: PEFT 0.21, ``peft.LoraConfig``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx

from ...error import CheckpointError, IoError, ModelError, UnexpectedShapeError, UnsupportedSafeTensorDtypeError
from ...files import read_json_object, write_atomically
from ...formats import safetensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

PREFIX = "base_model.model."
_FACTOR = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<factor>[AB])\.weight")

_UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "lora_ga_config",
)
"""Fields that, when set, change what the adapter computes beyond ``W x + scale B (A x)``."""

_KEEP_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base weights as they were; PiSSA and its like do not."""

Pair: TypeAlias = tuple[mx.array, mx.array]
"""A (in, rank) and B (rank, out) of one module."""


@dataclass(frozen=True)
class PeftFactors:
    """One module's adapter: ``y = x W^T + scale (x A) B``."""

    a: mx.array
    """Shape (in, rank)."""
    b: mx.array
    """Shape (rank, out)."""
    alpha: float
    scale: float
    """``alpha / rank``, or ``alpha / sqrt(rank)`` with rank-stabilised scaling."""

    @property
    def rank(self) -> int:
        """Inner dimension of the two factors."""
        return int(self.a.shape[1])


@dataclass(frozen=True)
class PeftAdapter:
    """What an adapter folder holds. ``rank``, ``alpha`` and ``scale`` are the general ones; a module may
    have its own, which stand in its factors."""

    rank: int
    alpha: float
    scale: float
    dropout: float
    target_modules: tuple[str, ...]
    base_model: str | None
    layers: tuple[int, ...] | None
    """The layers it says it is limited to (``layers_to_transform``), ``None`` for all."""
    factors: dict[str, PeftFactors]
    """Module path in the model, as ``model.layers.0.self_attn.q_proj``, to its factors."""


# --- writing ----------------------------------------------------------------------------------


def save(
    directory: str | PathLike[str],
    factors: Mapping[str, Pair],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: Sequence[str],
    base_model: str | None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter folder that ``PeftModel.from_pretrained`` loads; dtypes are kept.

    ``factors`` maps module paths to A (in, rank) and B (rank, out). ``extra`` adds fields to the
    configuration, or replaces those that have a neutral default here (``layers_to_transform``,
    ``use_rslora``…). Both files are complete on disk before either replaces an old one, the configuration
    last.

    Raises ``CheckpointError.SaveFailed`` if they cannot be written, ``CheckpointError.InvalidFormat`` if
    there are no factors, ``UnexpectedShapeError`` for a factor that does not fit the rank.
    """
    if not factors:
        raise CheckpointError.InvalidFormat(reason=f"{directory}: an adapter needs at least one module's factors")
    tensors = {}
    for path, (a, b) in factors.items():
        for name, array, axis in (("A", a, 1), ("B", b, 0)):
            if array.ndim != 2 or array.shape[axis] != rank:
                expected = (array.shape[0], rank) if name == "A" else (rank, array.shape[-1])
                raise UnexpectedShapeError(f"{path}.lora_{name}", expected, tuple(array.shape))
            tensors[f"{PREFIX}{path}.lora_{name}.weight"] = mx.contiguous(array.T)
    config = {**_config(rank, alpha, dropout, target_modules, base_model), **(extra or {})}
    folder = Path(directory)
    try:
        # The outer block renames last: a failure in the inner one leaves both old files.
        with write_atomically(folder / CONFIG) as config_beside:
            config_beside.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            with write_atomically(folder / WEIGHTS) as weights_beside:
                safetensors.save(weights_beside, tensors, safetensors.PT)
    except CheckpointError.SaveFailed as error:  # it names a file beside the one that was asked for
        cause = error.__cause__
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        reason = f"adapter {folder}: {why}; an adapter that was there is unchanged"
        raise CheckpointError.SaveFailed(reason=reason) from cause


def _config(
    rank: int, alpha: float, dropout: float, target_modules: Sequence[str], base_model: str | None
) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


# --- reading ----------------------------------------------------------------------------------


def load(directory: str | PathLike[str]) -> PeftAdapter:
    """Read an adapter folder written by ``save`` or by PEFT; dtypes are kept.

    Where ``target_modules`` is a regular expression, the names of the modules that have factors stand in
    its place.

    Raises ``CheckpointError.LoadFailed`` for a file that is missing or truncated and
    ``CheckpointError.InvalidFormat`` for one that is no LoRA adapter, uses a variant of LoRA that is not
    supported, or contradicts itself.
    """
    folder = Path(directory)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise CheckpointError.LoadFailed(reason=_what_is_missing(folder))
    config = _Config(folder / CONFIG)
    pairs = _read_pairs(folder / WEIGHTS)
    factors = {path: _factors(folder / WEIGHTS, path, pair, config) for path, pair in pairs.items()}
    targets = config.target_modules
    return PeftAdapter(
        rank=config.rank,
        alpha=config.alpha,
        scale=config.scale(config.rank, config.alpha),
        dropout=config.dropout,
        target_modules=tuple(sorted({path.rpartition(".")[2] for path in factors} if targets is None else targets)),
        base_model=config.base_model,
        layers=config.layers,
        factors=factors,
    )


def _what_is_missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such adapter folder"
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    reason = f"{folder}: no {' and no '.join(missing)}"
    if (folder / "adapters.safetensors").is_file():
        return f"{reason}; adapters.safetensors is mlx-lm's layout, this reads PEFT's"
    if (folder / "adapter_model.bin").is_file():
        return f"{reason}; adapter_model.bin, a pickle, is not read: save with safe_serialization=True"
    return f"{reason}; an adapter folder has {CONFIG} and {WEIGHTS}"


class _Config:
    """``adapter_config.json``, checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields = read_json_object(path, self._unreadable)
        kind = self.fields.get("peft_type")
        if kind != "LORA":
            raise self._invalid(f"peft_type is {kind!r}; takes 'LORA'")
        for name in _UNSUPPORTED:
            if self.fields.get(name):
                raise self._invalid(f"{name} is {self.fields[name]!r}, which is not supported; takes plain LoRA")
        if (bias := self.fields.get("bias", "none")) != "none":
            raise self._invalid(f"bias is {bias!r}, which is not supported; takes 'none'")
        initial = self.fields.get("init_lora_weights")
        if initial not in _KEEP_BASE:
            reason = f"init_lora_weights is {initial!r}, whose base weights differ from the model's"
            raise self._invalid(f"{reason}; save it with PEFT's path_initial_model_for_weight_conversion")
        self.rank = self._rank(self.fields.get("r"), "r")
        self.alpha = self._number(self.fields.get("lora_alpha"), "lora_alpha")
        self.dropout = self._number(self.fields.get("lora_dropout", 0.0), "lora_dropout")
        self.rank_pattern = self._pattern("rank_pattern")
        self.alpha_pattern = self._pattern("alpha_pattern")
        base = self.fields.get("base_model_name_or_path")
        self.base_model = None if base is None else str(base)

    @property
    def target_modules(self) -> list[str] | None:
        """The names, or ``None`` where they are not listed."""
        targets = self.fields.get("target_modules")
        return [str(name) for name in targets] if isinstance(targets, list) else None

    @property
    def layers(self) -> tuple[int, ...] | None:
        """``layers_to_transform``, ``None`` where it is not said."""
        listed = self.fields.get("layers_to_transform")
        return None if listed is None else tuple(listed if isinstance(listed, list) else [listed])

    def rank_of(self, path: str) -> int:
        """The rank of one module."""
        name, value = self._match(self.rank_pattern, path)
        return self.rank if name is None else self._rank(value, f"rank_pattern[{name!r}]")

    def alpha_of(self, path: str) -> float:
        """The alpha of one module."""
        name, value = self._match(self.alpha_pattern, path)
        return self.alpha if name is None else self._number(value, f"alpha_pattern[{name!r}]")

    def scale(self, rank: int, alpha: float) -> float:
        """What the product of the factors is multiplied with."""
        return alpha / (math.sqrt(rank) if self.fields.get("use_rslora") else rank)

    def _match(self, pattern: dict[str, Any], path: str) -> tuple[str | None, Any]:
        """PEFT's rule: the first key that, as a regular expression, is the path or ends it after a dot."""
        for name, value in pattern.items():
            try:
                found = re.fullmatch(rf"(?:.*\.)?(?:{name})", path)
            except re.error as error:
                raise self._invalid(f"pattern {name!r} is no regular expression: {error}") from error
            if found:
                return name, value
        return None, None

    def _pattern(self, field: str) -> dict[str, Any]:
        value = self.fields.get(field) or {}
        if not isinstance(value, dict):
            raise self._invalid(f"{field} is {value!r}; takes an object of module names")
        return value

    def _rank(self, value: Any, name: str) -> int:
        if type(value) is not int or value < 1:
            raise self._invalid(f"{name} is {'missing' if value is None else repr(value)}; takes an integer above 0")
        return value

    def _number(self, value: Any, name: str) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._invalid(f"{name} is {'missing' if value is None else repr(value)}; takes a number")
        return float(value)

    def _invalid(self, reason: str) -> CheckpointError:
        return CheckpointError.InvalidFormat(reason=f"{self.path}: {reason}")

    @staticmethod
    def _unreadable(reason: str) -> CheckpointError:
        return CheckpointError.LoadFailed(reason=reason)


def _read_pairs(path: Path) -> dict[str, Pair]:
    """Module path to PEFT's own A (rank, in) and B (out, rank)."""
    try:
        tensors = safetensors.load_file(path)
    except (ModelError, IoError, UnsupportedSafeTensorDtypeError) as error:
        raise CheckpointError.LoadFailed(reason=str(error).removeprefix("invalid model format: ")) from error
    found: dict[str, dict[str, mx.array]] = {}
    for key, tensor in tensors.items():
        match = _FACTOR.fullmatch(key)
        if match is None:
            reason = f"{path}: tensor {key} is not a LoRA factor of a linear layer; takes {PREFIX}….lora_A.weight"
            raise CheckpointError.InvalidFormat(reason=f"{reason} and ….lora_B.weight")
        found.setdefault(match["path"], {})[match["factor"]] = tensor
    if not found:
        raise CheckpointError.InvalidFormat(reason=f"{path}: holds no LoRA factors")
    for module, factors in found.items():
        if len(factors) == 1:
            there, lacking = ("A", "B") if "A" in factors else ("B", "A")
            reason = f"{path}: {module} has lora_{there} but no lora_{lacking}; save the adapter again"
            raise CheckpointError.InvalidFormat(reason=reason)
    return {module: (factors["A"], factors["B"]) for module, factors in sorted(found.items())}


def _factors(file: Path, path: str, pair: Pair, config: _Config) -> PeftFactors:
    a, b = pair
    rank, alpha = config.rank_of(path), config.alpha_of(path)
    for name, array, axis, form in (("A", a, 0, f"({rank}, in)"), ("B", b, 1, f"(out, {rank})")):
        if array.ndim != 2 or array.shape[axis] != rank:
            reason = f"{path}.lora_{name}.weight is {tuple(array.shape)}, {CONFIG} asks for rank {rank}: {form}"
            raise CheckpointError.InvalidFormat(reason=f"{file}: {reason}")
    return PeftFactors(mx.contiguous(a.T), mx.contiguous(b.T), alpha, config.scale(rank, alpha))

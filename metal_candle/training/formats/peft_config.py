"""PEFT's ``adapter_config.json``: what it says, checked, and what is written. Source: ``peft.LoraConfig``, 0.21."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...files import read_json_object
from .folder import check_agreement, plain_number
from .stored import StoredAdapter, alpha_for
from .tensors import a_dropout, a_factor, a_rank, invalid, layers_or_none, unreadable

UNSUPPORTED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole trained modules",
    "lora_bias": "a bias of lora_B",
    "layer_replication": "repeated layers",
    "target_parameters": "LoRA of bare parameters",
    "trainable_token_indices": "trained tokens",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "lora_ga_config": "LoRA-GA",
}
"""Fields that, when set, change what the adapter computes beyond ``W x + scale B (A x)``."""

_KEEP_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base weights as they were; PiSSA and its like do not."""


class PeftConfig:
    """``adapter_config.json``, checked. Raises ``CheckpointError``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields = read_json_object(path, unreadable)
        kind = self.fields.get("peft_type")
        if kind != "LORA":
            raise invalid(path, f"peft_type is {kind!r}; takes 'LORA'")
        for name, what in UNSUPPORTED.items():
            if self.fields.get(name):
                reason = f"{name} is {self.fields[name]!r} ({what}), which is not supported; takes plain LoRA"
                raise invalid(path, reason)
        if (bias := self.fields.get("bias", "none")) != "none":
            raise invalid(path, f"bias is {bias!r}, which is not supported; takes 'none'")
        initial = self.fields.get("init_lora_weights")
        if initial not in _KEEP_BASE:
            reason = f"init_lora_weights is {initial!r}, whose base weights differ from the model's"
            raise invalid(path, f"{reason}; save it with PEFT's path_initial_model_for_weight_conversion")
        self.rank = a_rank(path, self.fields.get("r"), "r")
        self.alpha = a_factor(path, self.fields.get("lora_alpha"), "lora_alpha")
        self.dropout = a_dropout(path, self.fields.get("lora_dropout", 0.0), "lora_dropout")
        check_agreement(path, self.fields, self.scale(self.rank, self.alpha))
        self.rank_pattern, self.alpha_pattern = self._pattern("rank_pattern"), self._pattern("alpha_pattern")
        self.layers = layers_or_none(path, self.fields.get("layers_to_transform"), "layers_to_transform")
        base = self.fields.get("base_model_name_or_path")
        self.base_model = None if base is None else str(base)

    @property
    def targets(self) -> tuple[str, ...] | None:
        """The names, or ``None`` where they are not listed: a regular expression, "all-linear", exceptions."""
        targets = self.fields.get("target_modules")
        if not isinstance(targets, list) or self.fields.get("exclude_modules"):
            return None
        return tuple(sorted(str(name) for name in targets))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth saying about the scales."""
        said = ["rank-stabilised scale"] if self.fields.get("use_rslora") else []
        return (*said, *(name.replace("_", " ") for name in ("rank_pattern", "alpha_pattern") if self.fields.get(name)))

    def rank_of(self, path: str) -> int:
        """The rank of one module."""
        name, value = self._match(self.rank_pattern, path)
        return self.rank if name is None else a_rank(self.path, value, f"rank_pattern[{name!r}]")

    def scale_of(self, path: str) -> float:
        """The scale of one module."""
        name, value = self._match(self.alpha_pattern, path)
        alpha = self.alpha if name is None else a_factor(self.path, value, f"alpha_pattern[{name!r}]")
        return self.scale(self.rank_of(path), alpha)

    def scale(self, rank: int, alpha: float) -> float:
        """What the product of the factors is multiplied by: alpha / rank, rank-stabilised alpha / sqrt(rank)."""
        return alpha / (math.sqrt(rank) if self.fields.get("use_rslora") else rank)

    def _match(self, pattern: dict[str, Any], path: str) -> tuple[str | None, Any]:
        """PEFT's rule: the first key that, as a regular expression, is the path or ends it after a dot."""
        for name, value in pattern.items():
            try:
                found = re.fullmatch(rf"(?:.*\.)?(?:{name})", path)
            except re.error as error:
                raise invalid(self.path, f"pattern {name!r} is no regular expression: {error}") from error
            if found:
                return name, value
        return None, None

    def _pattern(self, name: str) -> dict[str, Any]:
        value = self.fields.get(name) or {}
        if not isinstance(value, dict):
            raise invalid(self.path, f"{name} is {value!r}; takes an object of module names")
        return value


def config_of(adapter: StoredAdapter) -> dict[str, Any]:
    """The fields that make ``PeftModel.from_pretrained`` load an adapter with every module's own rank and scale.

    A scale becomes the alpha whose quotient by the rank it is; modules with other ranks or alphas than the general
    ones go into the patterns. A rank-stabilised adapter is written so too: its scales are the same.
    """
    ranks, alphas = {}, {}
    for path, factors in adapter.factors.items():
        if factors.rank != adapter.rank:
            ranks[path] = factors.rank
        # PEFT divides the general alpha by the module's own rank.
        if adapter.alpha / factors.rank != factors.scale:
            alphas[path] = plain_number(alpha_for(factors.scale, factors.rank))
    layers = adapter.chosen_layers()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_model,
        "r": adapter.rank,
        "lora_alpha": plain_number(adapter.alpha),
        "lora_dropout": adapter.dropout,
        "target_modules": sorted(adapter.target_names()),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": _pattern(ranks, adapter.factors),
        "alpha_pattern": _pattern(alphas, adapter.factors),
        "modules_to_save": None,
        "layers_to_transform": None if layers is None else list(layers),
        "layers_pattern": None,
    }


def _pattern(values: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """Values by module path as PEFT's pattern: a whole path ends no other path."""
    everywhere = list(paths)
    for path in values:
        if clash := next((each for each in everywhere if each.endswith(f".{path}")), None):
            raise invalid("peft", f"a pattern for {path} would hold for {clash} too, which PEFT's patterns cannot tell")
    return dict(values)

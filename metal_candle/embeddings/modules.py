"""What a folder of sentence-transformers says of pooling and of the longest text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..error import EmbeddingError
from ..files import read_json_object, read_text
from .pooling import POOLS

MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The switches of ``1_Pooling/config.json`` and what they are called; of these the two last are not supported."""


@dataclass(frozen=True)
class Modules:
    """How a folder's embeddings are made: ways of pooling, and the most tokens of a text, if it says."""

    pools: tuple[str, ...] = ("mean",)
    max_seq_length: int | None = None


def _refuse(reason: str) -> EmbeddingError:
    return EmbeddingError.InvalidConfig(reason=reason)


def read_modules(folder: Path) -> Modules:
    """Read ``modules.json``, the pooling's configuration and ``sentence_bert_config.json``; without any, the mean.

    Raises ``EmbeddingError.InvalidConfig`` for a module or a way of pooling that is not supported.
    """
    limit = _limit(folder / "sentence_bert_config.json")
    file = folder / "modules.json"
    if not file.is_file():
        return Modules(max_seq_length=limit)
    try:
        listed = json.loads(read_text(file, _refuse))
        kinds = [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in listed]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, EmbeddingError):
            raise
        raise _refuse(f"{file}: takes a list of objects with type and path") from error
    pools: tuple[str, ...] = ("mean",)
    for kind, path in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise _refuse(f"{file}: module {kind} is not supported; takes Transformer, Pooling and Normalize")
        if kind == "Pooling":
            pools = _pools(folder / path / "config.json")
    return Modules(pools, limit)


def _pools(file: Path) -> tuple[str, ...]:
    values = read_json_object(file, _refuse) if file.is_file() else {}
    named = values.get("pooling_mode")  # newer folders have the name itself, or several
    if named is None:
        named = [name for switch, name in MODES.items() if values.get(switch)] or ["mean"]
    asked: list[Any] = named if isinstance(named, list) else [named]
    if other := [name for name in asked if name not in POOLS]:
        raise _refuse(f"{file}: pooling {', '.join(map(str, other))} is not supported; takes {', '.join(POOLS)}")
    return tuple(name for name in POOLS if name in asked)


def _limit(file: Path) -> int | None:
    value = read_json_object(file, _refuse).get("max_seq_length") if file.is_file() else None
    if value is not None and (type(value) is not int or value < 1):
        raise _refuse(f"{file}: max_seq_length is {value!r}; takes a number from 1")
    return value

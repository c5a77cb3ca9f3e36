"""Which architecture a folder's ``config.json`` names, and whether it is one of ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..error import ModelError
from ..files import read_json_object
from .config import ARCHITECTURES

MLX_LM_EXTRA = 'pip install "metal-candle[mlx-lm]"'


def foreign_architecture(folder: Path) -> str | None:
    """The ``model_type`` of a model folder that our decoder does not know; ``None`` for ours, and where none is said.

    Raises ``ModelError.InvalidConfig`` for a file that is no JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        return None
    values = read_json_object(file, lambda reason: ModelError.InvalidConfig(reason=reason))
    kind, names = values.get("model_type"), values.get("architectures")
    if isinstance(kind, str) and kind:
        return None if kind in ARCHITECTURES else kind
    if isinstance(names, list) and names and isinstance(names[0], str):
        return None if names[0] in ARCHITECTURES.values() else names[0]
    return None


def has_mlx_lm() -> bool:
    """Whether mlx-lm is installed; it is not imported."""
    return importlib.util.find_spec("mlx_lm") is not None


def unknown_architecture(folder: Path, name: str, why: str) -> ModelError:
    """The error for an architecture that is not ours and that mlx-lm cannot help with, because of ``why``."""
    return ModelError.InvalidConfig(
        reason=f"{folder / 'config.json'}: unknown architecture {name!r}; takes {', '.join(ARCHITECTURES)}, or one of "
        f"mlx-lm's: {why}"
    )

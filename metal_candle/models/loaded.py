"""A model with what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model, its tokenizer, and where both came from; ``note`` says what is unusual: quantised, or through mlx-lm."""

    model: Any
    tokenizer: Tokenizer
    path: Path
    name: str
    note: str = ""

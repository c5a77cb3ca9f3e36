"""What the tests of all caches share: entries that tell where they come from, and attention in NumPy."""

from __future__ import annotations

from typing import Any

from metal_candle import LazyTensor, Tensor

import numpy as np
import pytest

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])


def entries(first: int, count: int, batch: int = 1, heads: int = 2, width: int = 4) -> Any:
    """Keys ``(batch, heads, count, width)`` of positions ``first`` on, the same however they are cut."""
    rows = [
        np.random.default_rng(position).standard_normal((batch, heads, 1, width)).astype(np.float32)
        for position in range(first, first + count)
    ]
    return np.concatenate([np.zeros((batch, heads, 0, width), np.float32), *rows], 2)


def attend(q: Any, k: Any, v: Any, hidden: Any) -> Any:
    """Attention of ``(b, h, t, d)`` to what is not ``hidden``, a bool that broadcasts to ``(b, h, t, s)``."""
    scores = np.where(hidden, -np.inf, q @ np.swapaxes(k, -1, -2))
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) @ v

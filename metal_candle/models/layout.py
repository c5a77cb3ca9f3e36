"""Where the tokens of a call stand, and which of them see each other."""

from __future__ import annotations

from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ..dtype import DType
from ..nn.kv_cache import ConcatKvCache
from ..tensor.eager import Tensor
from .rotary import RotaryEmbedding

Tables = tuple[Any, Any]


class Layout(Protocol):
    """The positions of a call's tokens ``(b, t)`` among the keys ``(b, s)``, the same for every block."""

    def tables(self) -> Tables:
        """Cosines and sines of the tokens' positions, ``(t, head_dim / 2)`` or ``(b, t, head_dim / 2)``."""

    def mask(self, window: int | None) -> Any:
        """The additive mask of a block that looks back ``window`` positions: ``(t, s)`` or ``(b, 1, t, s)``.

        ``None`` where each token sees itself and all before it.
        """


class Causal:
    """Tokens that follow each other from ``start`` on, the same in every row."""

    def __init__(self, rotary: RotaryEmbedding, xs: Any, start: int) -> None:
        """The layout of ``xs``, ``(b, t)`` or ``(b, t, hidden)``."""
        self._rotary, self._xs, self._start, self._length = rotary, xs, start, int(xs.dim(1))
        self._masks: dict[int, Any] = {}

    @classmethod
    def after(cls, cache: ConcatKvCache | None, rotary: RotaryEmbedding, xs: Any) -> Causal:
        """The layout of ``xs`` that follows what is in a cache."""
        return cls(rotary, xs, 0 if cache is None else cache.current_seq_len())

    def tables(self) -> Tables:
        """The tables from ``start`` on."""
        return self._rotary.tables(self._start, self._length)

    def mask(self, window: int | None) -> Any:
        """A mask where the sliding window hides something, else ``None``."""
        seen_from, length = self._start, self._length
        if window is None or seen_from + length <= window:
            return None
        if window not in self._masks:
            behind = (seen_from + np.arange(length))[:, None] - np.arange(seen_from + length)[None, :]
            seen = mx.array((behind >= 0) & (behind < window))
            values = mx.where(seen, 0.0, hidden_value(self._rotary.dtype)).astype(self._rotary.dtype.mlx_)
            self._masks[window] = self._xs._lift(Tensor.from_mlx(values, self._xs.device))
        return self._masks[window]


class AtTables:
    """Tokens whose tables are given: placeholders, where a step is recorded for replay. Nothing is masked."""

    def __init__(self, cos: Any, sin: Any) -> None:
        self._tables = cos, sin

    def tables(self) -> Tables:
        """What was given."""
        return self._tables

    def mask(self, window: int | None) -> Any:
        """``None``: what a token may not see is not in its cache."""
        return None


def hidden_value(dtype: DType) -> float:
    """What is added to the score of a key that is not seen: finite, as halves of 0 · -inf are NaN in a gradient."""
    return float(np.finfo(np.float16).min) if dtype is DType.F16 else -1e9

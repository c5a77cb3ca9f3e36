"""Attention among packed rows that goes by blocks of the sequence, where every row is shorter than one."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..nn import ops
from ..tensor.eager import Tensor
from .layout import Packed
from .rotary import RotaryEmbedding


class PackedInBlocks(Packed):
    """``Packed`` for rows no longer than a block: a token's row lies in its own block and the one before.

    So n blocks of w tokens score 2 · w keys a query, where the whole sequence would be n · w, most of them hidden.
    """

    def __init__(self, rotary: RotaryEmbedding, segments: Any, positions: Any) -> None:
        """``segments`` and ``positions`` as ``Packed`` takes them, but by blocks: ``(b, n, w)``."""
        self._b, self._blocks, self._width = segments.dims3()
        shape = (self._b, self._blocks * self._width)
        super().__init__(rotary, segments.reshape(shape), positions.reshape(shape))
        self._by_block = segments

    def mask(self, window: int | None) -> Any:
        """1 where a token sees another of its block or of the one before, else 0: U8 ``(b · n, 1, w, 2 · w)``."""
        if window not in self._masks:
            b, n, width, segments = self._b, self._blocks, self._width, self._by_block
            nothing = segments._lift(Tensor.from_numpy(np.full((b, 1, width), -1, np.int32), segments.device))
            before = type(segments).cat([nothing.to_dtype(segments.dtype), segments.narrow(1, 0, n - 1)], 1)
            keys = type(segments).cat([before, segments], 2)
            behind = width + np.arange(width)[:, None] - np.arange(2 * width)[None, :]
            seen = (behind >= 0) & (behind < (2 * width if window is None else window))
            near = segments._lift(Tensor.from_numpy(seen.astype(np.uint8), segments.device))
            same = segments.unsqueeze(3).broadcast_eq(keys.unsqueeze(2))
            self._masks[window] = same.broadcast_mul(near).reshape((b * n, 1, width, 2 * width))
        return self._masks[window]

    def attend(self, q: Any, k: Any, v: Any, window: int | None, scale: float) -> Any:
        """What each query gathers: q ``(b, h, t, d)``, k and v ``(b, kv, t, d)``, t = n · w, to ``(b, h, t, d)``."""
        (b, heads, t, size), n, width = q.dims4(), self._blocks, self._width
        queries = q.reshape((b, heads, n, width, size)).transpose(1, 2).reshape((b * n, heads, width, size))
        found = ops.sdpa(queries, self._keys(k), self._keys(v), self.mask(window), False, scale)
        return found.reshape((b, n, heads, width, size)).transpose(1, 2).reshape((b, heads, t, size))

    def _keys(self, xs: Any) -> Any:
        """Each block behind the one before it, ``(b · n, kv, 2 · w, d)``; before the first its own, which is hidden."""
        (b, shared, _, size), n, width = xs.dims4(), self._blocks, self._width
        own = xs.reshape((b, shared, n, width, size))
        before = type(own).cat([own.narrow(2, 0, 1), own.narrow(2, 0, n - 1)], 2)
        both = type(own).cat([before, own], 3).transpose(1, 2)
        return both.reshape((b * n, shared, 2 * width, size))

"""Where the tokens of a call stand, and which of them see each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ..dtype import DType
from ..nn.kv_cache import ConcatKvCache, Span
from ..tensor.eager import Tensor
from .rotary import RotaryEmbedding

Tables = tuple[Any, Any]


class Layout(Protocol):
    """The positions of a call's tokens ``(b, t)`` among the keys ``(b, s)``, the same for every block."""

    def tables(self) -> Tables:
        """Cosines and sines of the tokens' positions, ``(t, head_dim / 2)`` or ``(b, t, head_dim / 2)``."""

    def mask(self, window: int | None) -> Any:
        """The mask of a block that looks back ``window`` positions, ``(t, s)`` or ``(b, 1, t, s)``: floats are
        added, integers hide where they are 0. ``None`` where each token sees itself and all before it.
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
    """Tokens whose rotary tables and masks are given, as where a decoding step is recorded for replay.

    There is a mask for each window that the blocks have. Without one nothing is masked: what a token may not see is
    not in its cache then.
    """

    def __init__(self, cos: Any, sin: Any, masks: Mapping[int | None, Any] | None = None) -> None:
        self._tables, self._masks = (cos, sin), masks or {}

    def tables(self) -> Tables:
        """What was given."""
        return self._tables

    def mask(self, window: int | None) -> Any:
        """What was given, or ``None``."""
        return self._masks.get(window)


class Rows:
    """Rows of unequal length that end together: each is padded on the left.

    ``xs`` ``(b, t)`` holds the places from ``start`` on. Row i begins at place ``left[i]``, where its position is 0.
    ``spans`` tells what is seen, and kept in the cache, where a block has this window.
    """

    def __init__(
        self, rotary: RotaryEmbedding, xs: Any, start: int, left: Sequence[int], spans: Callable[[int | None], Span]
    ) -> None:
        self._rotary, self._xs, self._start, self._spans = rotary, xs, start, spans
        self._left = np.asarray(left)[:, None]
        self._places = start + np.arange(int(xs.dim(1)))
        self._tables: Tables | None = None
        self._masks: dict[Span, Any] = {}

    def tables(self) -> Tables:
        """Those of each row's positions; where all begin at place 0, the same for all."""
        if not self._left.any():
            return self._rotary.tables(self._start, len(self._places))
        if self._tables is None:
            at = np.maximum(self._places - self._left, 0)
            cos, sin = (self._tensor(rows[at]) for rows in self._rotary.rows(0, int(at.max()) + 1))
            self._tables = cos, sin
        return self._tables

    def mask(self, window: int | None) -> Any:
        """``(b, 1, t, s)`` over the places that are kept and those of ``xs``; ``None`` where nothing is hidden."""
        span = self._spans(window)
        if span not in self._masks:
            seen = self._seen(span)
            later = len(self._places) > 1  # one place sees all that are kept, as do several in their order
            t, keys = seen.shape[1:]
            in_order = np.tri(t, keys, keys - t, dtype=np.bool_) if later else True
            hidden = np.where(seen, np.float32(0), np.float32(hidden_value(self._rotary.dtype)))
            self._masks[span] = None if (seen == in_order).all() else self._tensor(hidden[:, None])
        return self._masks[span]

    def _seen(self, span: Span) -> Any:
        """Whether a place ``(b, t, s)`` sees another."""
        keys, own = np.concatenate([span.held(self._start), self._places]), self._places[:, None]
        seen = keys <= own
        if span.window is not None:
            near, first = own - keys < span.window, (keys - self._left < span.keep)[:, None, :]
            seen = seen & (near | first)
        return seen & (keys >= self._left)[:, None, :]

    def _tensor(self, values: Any) -> Any:
        array = mx.array(values).astype(self._rotary.dtype.mlx_)
        mx.eval(array)
        return self._xs._lift(Tensor.from_mlx(array, self._xs.device))


class Packed:
    """Rows packed one behind the other into sequences: a token sees those of its own row up to itself."""

    def __init__(self, rotary: RotaryEmbedding, segments: Any, positions: Any) -> None:
        """``segments`` ``(b, t)`` numbers each token's row, ``positions`` its place in the row; integers below t."""
        self._rotary, self._segments, self._positions = rotary, segments, positions
        self._tables: Tables | None = None
        self._masks: dict[int | None, Any] = {}

    def tables(self) -> Tables:
        """The tables' rows at the tokens' positions, ``(b, t, head_dim / 2)``."""
        if self._tables is None:
            b, t = self._positions.dims2()
            flat = self._positions.reshape((b * t,))
            cos, sin = (flat._lift(table).index_select(flat, 0) for table in self._rotary.tables(0, t))
            self._tables = cos.reshape((b, t, -1)), sin.reshape((b, t, -1))
        return self._tables

    def mask(self, window: int | None) -> Any:
        """1 where a token sees another, else 0: U8 ``(b, 1, t, t)``."""
        if window not in self._masks:
            segments = self._segments
            t = int(segments.dim(1))
            behind = np.arange(t)[:, None] - np.arange(t)[None, :]
            seen = (behind >= 0) & (behind < (t if window is None else window))
            before = segments._lift(Tensor.from_numpy(seen.astype(np.uint8), segments.device))
            same = segments.unsqueeze(2).broadcast_eq(segments.unsqueeze(1))
            self._masks[window] = same.broadcast_mul(before).unsqueeze(1)
        return self._masks[window]


def hidden_value(dtype: DType) -> float:
    """What is added to the score of a key that is not seen: finite, as halves of 0 · -inf are NaN in a gradient."""
    return float(np.finfo(np.float16).min) if dtype is DType.F16 else -1e9

"""The cache of a step that is recorded once and replayed for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...graph.operation import Meta, Operation
from .concat import ConcatKvCache

GROW = 256
"""Least entries a block grows by, and those that a sliding window has room for before it is moved to the front."""


class Span(NamedTuple):
    """Which entries a position sees: itself with the ``window - 1`` before it, and the first ``keep`` of all.

    Without a window it sees all. The first ones are attention sinks: Xiao et al. 2023, https://arxiv.org/abs/2309.17453.
    """

    window: int | None = None
    keep: int = 0

    def held(self, count: int) -> Any:
        """The positions, of the first ``count``, that some later one sees."""
        if self.window is None or count < self.keep + self.window:
            return np.arange(count)
        return np.concatenate([np.arange(self.keep), np.arange(count - self.window + 1, count)])


class KvBuffer:
    """Keys or values of one layer, ``(b, kv, t, d)``, in a block with room for more.

    For a step that is replayed token by token: appending writes into the block instead of copying all that is
    there. ``append`` shows what the last position sees under a ``Span``; what no later one sees is written over, so
    that a window takes no more memory as it moves on. ``room`` is what the block has place for from the start.
    """

    def __init__(self, window: int | None = None, keep: int = 0, room: int = 0) -> None:
        self._span, self._room = Span(window, keep), room
        self._arrays: Any = None
        self._block: Any = None
        self._first: Any = None
        self._length = 0

    def start(self, arrays: Any, past: Any) -> None:
        """Hold ``past``, an array of the library ``arrays``: ``numpy``, where it is written to, or ``mlx.core``.

        It has all entries so far, or those that ``Span.held`` tells.
        """
        self._arrays, self._block, self._length, self._first = arrays, past, past.shape[2], None
        if self._room > self._length:
            self._grow(self._room - self._length)

    def append(self, new: Any) -> Any:
        """Everything up to and including ``new``, ``(b, kv, 1, d)``, that the last position sees."""
        if self._length + new.shape[2] > self._block.shape[2]:
            self._make_room()
        end = self._length + new.shape[2]
        self._block[:, :, self._length : end] = new
        self._length = end
        window, keep = self._span
        first = 0 if window is None else max(0, end - window)
        if keep and first > keep:
            # What is just before the window is seen no more: there the first entries stand next to it.
            if self._first is None:
                self._first = self._arrays.array(self._block[:, :, :keep])
            self._block[:, :, first - keep : first] = self._first
        return self._block[:, :, max(0, first - keep) : end]

    def past(self, count: int) -> Any:
        """The first ``count`` entries, ``None`` where one of them may be gone."""
        window, keep = self._span
        if window is not None and self._length >= window + keep - 1:
            return None
        return self._block[:, :, :count]

    def take(self, rows: Sequence[int], count: int) -> None:
        """Keep only some rows, and of these not more than the last ``count`` entries. Not for a span that keeps."""
        past = self._block[self._arrays.array(rows), :, max(0, self._length - count) : self._length]
        self.start(self._arrays, past)

    def _make_room(self) -> None:
        window, keep = self._span
        if window is not None and self._length >= window + keep:
            first = self._block[:, :, :keep] if self._first is None else self._first
            last = self._block[:, :, self._length - window + 1 : self._length]
            self._block = self._arrays.concatenate([first, last], axis=2)
            self._length, self._first = self._block.shape[2], None
            self._grow(GROW)
        else:
            self._block = self._block[:, :, : self._length]
            self._grow(max(GROW, self._length) if window is None else GROW)

    def _grow(self, count: int) -> None:
        b, kv, _, d = self._block.shape
        room = self._arrays.zeros((b, kv, count, d), self._block.dtype)
        self._block = self._arrays.concatenate([self._block, room], axis=2)


class CacheAppend(Operation):
    """New keys or values joined to those in a ``KvBuffer``, which keeps them.

    Lowering it changes the buffer: it stands only in a plan that runs once per token and is recorded for one
    token, whatever the length of the cache.
    """

    pure = False
    lasting = False
    buffer: KvBuffer

    def infer(self, new: Meta) -> Meta:
        return new

    def lower(self, new: Any) -> Any:
        return self.buffer.append(new)

    @staticmethod
    def numpy(new: Any, buffer: KvBuffer) -> Any:
        return buffer.append(new)


class RecordedCache(ConcatKvCache):
    """Stands in for a layer's cache while a step is recorded: what is appended goes to two buffers."""

    def __init__(self, keys: KvBuffer, values: KvBuffer) -> None:
        super().__init__(2)
        self._keys, self._values = keys, values

    def append(self, k: Any, v: Any) -> tuple[Any, Any]:
        """The buffers' contents, when the plan runs."""
        keys, values = CacheAppend(self._keys), CacheAppend(self._values)
        return k._record(keys), v._record(values)

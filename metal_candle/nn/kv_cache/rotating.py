"""Caches of the last entries only. candle: ``candle_nn::kv_cache::RotatingCache``, ``RotatingKvCache``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...constructors import New
from ...device import DeviceLike
from ...graph.operations.counts import integer
from ...shape import DimLike
from ...tensor.eager import Tensor
from .block import Block
from .pair import Pair, expect_pair


class RotatingCache(New):
    """The last ``max_seq_len`` entries of a sequence along ``dim``, in a ring.

    They come in the ring's order: once it is full the oldest one is at ``offset()``, see ``positions``. What ``append``
    gives keeps its values, candle's changes with the ring; for that MLX copies the ring if it is still held at the
    next append. Gradients pass through.
    """

    def __init__(self, dim: DimLike, max_seq_len: int) -> None:
        self._room = integer("RotatingCache", "max_seq_len", max_seq_len, 1)
        self._block = Block(dim)
        self._offset = self._seen = 0

    def __repr__(self) -> str:
        return (
            f"RotatingCache(dim={self.dim()}, current_seq_len={self.current_seq_len()}, "
            f"max_seq_len={self.max_seq_len()})"
        )

    def offset(self) -> int:
        """Where in the ring the next entry goes."""
        return self._offset

    def dim(self) -> DimLike:
        """The dim along which entries are appended."""
        return self._block.dim

    def current_seq_len(self) -> int:
        """How many entries were appended, also those that are no longer there."""
        return self._seen

    def max_seq_len(self) -> int:
        """How many entries the ring holds."""
        return self._room

    def all_data(self) -> Any:
        """The whole ring, 0 where nothing was written; ``None`` before the first append."""
        whole = self._block.whole(self._room)
        self._block.start()
        return whole

    def current_data(self) -> Any:
        """The entries that are there, in the ring's order; ``None`` before the first append."""
        entries = self._block.snapshot()
        self._block.start()
        return entries

    def reset(self) -> None:
        """Forget everything; tensors that were given away keep their values."""
        self._block.clear()
        self._offset = self._seen = 0

    def append(self, src: Any) -> Any:
        """The entries that are there now, or of ``max_seq_len`` new ones or more ``src`` itself.

        ``src`` may be of any size in ``dim`` and is like the others in every other. Raises ``ShapeMismatchError``,
        ``DTypeMismatchError``, ``DimOutOfRangeError``.
        """
        entries = self._put(src, self._block.expect("entries", src))
        self._block.start()
        return entries

    def _put(self, src: Any, count: int) -> Any:
        block, room, axis = self._block, self._room, self._block.axis(src)
        self._seen += count
        if count >= room:
            block.write(src.narrow(axis, count - room, room), 0, room)
            self._offset = 0
            return src
        first = min(count, room - self._offset)
        if first == count:
            block.write(src, self._offset, room)
        else:
            block.write(src.narrow(axis, 0, first), self._offset, room)
            block.write(src.narrow(axis, first, count - first), 0, room)
        self._offset = (self._offset + count) % room
        return block.snapshot()

    def positions(self, seq_len: int) -> list[int]:
        """The place in the sequence of each entry that ``append`` gives for ``seq_len`` new ones.

        (candle's are wrong for just ``max_seq_len`` of them, unless ``offset()`` is 0.)
        """
        return [int(position) for position in self._positions(integer("positions", "seq_len", seq_len, 0))]

    def _positions(self, count: int) -> Any:
        end = self._seen + count
        if count >= self._room:
            return np.arange(self._seen, end)
        there = np.arange(min(end, self._room))
        # The newest that may be at each place: the last position before ``end`` that leaves the same remainder.
        newest = (self._offset + count - 1 - there) % self._room
        return end - 1 - newest if end > self._room else there

    def attn_mask(self, seq_len: int, device: DeviceLike = None) -> Any:
        """Which of the entries that ``append`` gives for ``seq_len`` new ones each of these may not look at.

        U8 ``(seq_len, entries)``: 1 hides what comes later, and what is more than ``max_seq_len`` positions earlier;
        ``None`` for one new entry, which sees all. It is asked for before ``append``. One by one each entry sees the
        last ``max_seq_len`` with itself. Several new ones overwrite what the first of them would have seen; and as
        ``max_seq_len`` or more of them are given back alone, they see nothing before the first, but one position
        further back, as in candle.
        """
        count = integer("attn_mask", "seq_len", seq_len, 0)
        if count == 1:
            return None
        there = self._positions(count)
        own = np.arange(self._seen, self._seen + count)[:, None]
        return Tensor.new(((there > own) | (there + self._room < own)).astype(np.uint8), device)


class RotatingKvCache(Pair[RotatingCache]):
    """The last keys and values, in a ``RotatingCache`` each."""

    half = RotatingCache

    def append(self, k: Any, v: Any) -> tuple[Any, Any]:
        """The keys and values as ``RotatingCache.append`` gives them. Raises as it does; nothing has changed then."""
        keys, values = self._k._block, self._v._block
        count = expect_pair(keys, values, k, v)
        both = self._k._put(k, count), self._v._put(v, count)
        keys.start(values)
        return both

    def offset(self) -> int:
        """Where in the ring the next key goes."""
        return self._k.offset()

    def attn_mask(self, seq_len: int, device: DeviceLike = None) -> Any:
        """See ``RotatingCache.attn_mask``."""
        return self._k.attn_mask(seq_len, device)

    def positions(self, seq_len: int) -> list[int]:
        """See ``RotatingCache.positions``."""
        return self._k.positions(seq_len)

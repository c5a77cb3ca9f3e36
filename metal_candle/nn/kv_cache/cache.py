"""Caches that keep every entry. candle: ``candle_nn::kv_cache::Cache``, ``KvCache``."""

from __future__ import annotations

from typing import Any

from ...constructors import New
from ...error import ArgumentValueError
from ...graph.operations.counts import integer
from ...shape import DimLike
from .block import Block
from .pair import Pair, expect_pair


class Cache(New):
    """A tensor that grows along ``dim``, in a block made at the first ``append`` for ``max_seq_len`` entries.

    Where that is not enough the block grows by as much again. An eager append writes into the block: what it costs
    does not depend on what is there. Lazy tensors are joined to those before, which the next evaluation that needs
    them computes. Gradients pass through, candle's stop here: who generates with variables keeps the graph of all
    steps, unless what is appended is detached.
    """

    def __init__(self, dim: DimLike, max_seq_len: int) -> None:
        self._room = self._grow_by = integer("Cache", "max_seq_len", max_seq_len, 1)
        self._block = Block(dim)

    def __repr__(self) -> str:
        return f"Cache(dim={self.dim()}, current_seq_len={self.current_seq_len()}, max_seq_len={self.max_seq_len()})"

    def dim(self) -> DimLike:
        """The dim that grows."""
        return self._block.dim

    def current_seq_len(self) -> int:
        """How many entries are in."""
        return self._block.length

    def max_seq_len(self) -> int:
        """How many there is room for; more after the block has grown, which ``reset`` does not undo."""
        return self._room

    def all_data(self) -> Any:
        """The whole block, 0 behind the entries; ``None`` before the first append."""
        whole = self._block.whole(self._room)
        self._block.start()
        return whole

    def current_data(self) -> Any:
        """All entries, ``None`` before the first append. An eager one is a view of the block."""
        entries = self._block.entries()
        self._block.start()
        return entries

    def reset(self) -> None:
        """Forget everything; tensors that were given away keep their values."""
        self._block.clear()

    def truncate(self, seq_len: int) -> None:
        """Keep the first ``seq_len`` entries; candle has no such method. Tensors given away keep their values.

        Raises ``ArgumentValueError`` unless there are so many.
        """
        most = self.current_seq_len()
        if integer("truncate", "seq_len", seq_len, 0) > most:
            raise ArgumentValueError(f"truncate: got seq_len {seq_len}; takes 0 to {most}, as many as there are")
        self._block.truncate(seq_len)

    def append(self, src: Any) -> None:
        """Put ``src`` behind the entries; it may be of any size in ``dim`` and is like the others in every other.

        Raises ``ShapeMismatchError``, ``DTypeMismatchError``, ``DimOutOfRangeError``.
        """
        self._put(src, self._block.expect("entries", src))
        self._block.start()

    def _put(self, src: Any, count: int) -> None:
        length = self._block.length
        missing = length + count - self._room
        if missing > 0:
            more = -(-missing // self._grow_by) * self._grow_by
            self._room += more
            self._block.grow(more)
        self._block.write(src, length, self._room)


class KvCache(Pair[Cache]):
    """Keys and values of the tokens so far, in a ``Cache`` each.

    What ``append`` gives keeps its values whatever is appended later.
    """

    half = Cache

    def truncate(self, seq_len: int) -> None:
        """Keep the first ``seq_len`` keys and values. Raises as ``Cache.truncate``."""
        self._k.truncate(seq_len)
        self._v.truncate(seq_len)

    def append(self, k: Any, v: Any) -> tuple[Any, Any]:
        """All keys and values up to and including these. Raises as ``Cache.append``; nothing has changed then."""
        keys, values = self._k._block, self._v._block
        count = expect_pair(keys, values, k, v)
        self._k._put(k, count)
        self._v._put(v, count)
        both = keys.entries(), values.entries()
        keys.start(values)
        return both

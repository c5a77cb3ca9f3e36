"""The cache of a step that is recorded once and replayed for each token."""

from __future__ import annotations

from typing import Any

from ...graph.operation import Meta, Operation
from .concat import ConcatKvCache


class KvBuffer:
    """Keys or values of one layer, ``(b, kv, t, d)``, in a block with room for more.

    For a step that is replayed token by token: appending writes into the block instead of copying all that is
    there. A sliding ``window`` limits what ``append`` shows to the last entries.
    """

    def __init__(self, window: int | None = None) -> None:
        self._window = window
        self._arrays: Any = None
        self._block: Any = None
        self._length = 0

    def start(self, arrays: Any, past: Any) -> None:
        """Hold ``past``, an array of the library ``arrays``: ``numpy``, where it is written to, or ``mlx.core``."""
        self._arrays, self._block, self._length = arrays, past, past.shape[2]

    def append(self, new: Any) -> Any:
        """Everything up to and including ``new``, ``(b, kv, 1, d)``, that the last position sees."""
        end = self._length + new.shape[2]
        if end > self._block.shape[2]:
            b, kv, _, d = self._block.shape
            room = self._arrays.zeros((b, kv, max(256, self._length), d), self._block.dtype)
            self._block = self._arrays.concatenate([self._block[:, :, : self._length], room], axis=2)
        self._block[:, :, self._length : end] = new
        self._length = end
        first = 0 if self._window is None else max(0, end - self._window)
        return self._block[:, :, first:end]


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

"""Keys and values of the tokens so far. candle: ``candle_nn::kv_cache``."""

from __future__ import annotations

from typing import Any

from ..error import ShapeMismatchError
from ..graph.operation import Meta, Operation


class ConcatKvCache:
    """A cache that grows by concatenation along ``dim``."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._k: Any = None
        self._v: Any = None

    def append(self, k: Any, v: Any) -> tuple[Any, Any]:
        """All keys and values up to and including these, which are evaluated with what uses them."""
        if self._k is not None:
            if k.rank != self._k.rank or k.shape[0] != self._k.shape[0]:
                raise ShapeMismatchError(
                    f"kv cache: got keys {list(k.shape)} after {list(self._k.shape)}; takes the same batch"
                )
            k, v = type(k).cat([self._k, k], self._dim), type(v).cat([self._v, v], self._dim)
        self._k, self._v = k, v
        return k, v

    def k(self) -> Any:
        """All keys, or ``None``."""
        return self._k

    def v(self) -> Any:
        """All values, or ``None``."""
        return self._v

    def dim(self) -> int:
        """The dim that grows."""
        return self._dim

    def is_empty(self) -> bool:
        """Whether nothing was appended yet."""
        return self._k is None

    def current_seq_len(self) -> int:
        """How many tokens are in."""
        return 0 if self._k is None else int(self._k.dim(self._dim))

    def reset(self) -> None:
        """Forget everything."""
        self._k = self._v = None


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

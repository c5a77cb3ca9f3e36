"""Keys and values of the tokens so far. candle: ``candle_nn::kv_cache``."""

from __future__ import annotations

from typing import Any

from ..error import ShapeMismatchError


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

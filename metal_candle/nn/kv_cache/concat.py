"""The cache that concatenates. candle: ``candle_nn::kv_cache::ConcatKvCache``."""

from __future__ import annotations

from typing import Any

from ...constructors import New
from ...error import ShapeMismatchError
from ...graph.node import current_trace
from ...shape import DimLike, resolve_dim
from ...tensor.arguments import expect_tensor
from ...tensor.eager import Tensor
from ...tensor.lazy import LazyTensor
from .block import expect_like, expect_place


class ConcatKvCache(New):
    """Keys and values that grow by concatenation along ``dim``.

    Gradients pass through; candle's stop here.
    """

    def __init__(self, dim: DimLike) -> None:
        self._dim = dim
        self._k: Any = None
        self._v: Any = None
        self._trace = current_trace()

    def __repr__(self) -> str:
        return f"ConcatKvCache(dim={self._dim}, current_seq_len={self.current_seq_len()})"

    def append(self, k: Any, v: Any) -> tuple[Any, Any]:
        """All keys and values up to and including these; lazy ones are evaluated with what uses them.

        Raises ``ShapeMismatchError``, ``DTypeMismatchError``, ``DimOutOfRangeError``; nothing has changed then.
        """
        expect_place(self._trace)
        expect_tensor("append", k, "keys")
        expect_tensor("append", v, "values")
        axis = resolve_dim(self._dim, k.shape, "append")
        if k.shape[axis] != v.dim(self._dim):
            raise ShapeMismatchError(
                f"append: got keys {list(k.shape)} and values {list(v.shape)}; takes as many of both in dim {axis}"
            )
        if self._k is not None:
            for what, held, new in (("keys", self._k, k), ("values", self._v, v)):
                expect_like(what, new, held.shape, held.dtype, axis, held.shape[axis])
            k, v = _joined(self._k, k, axis), _joined(self._v, v, axis)
        self._k, self._v = k, v
        return k, v

    def k(self) -> Any:
        """All keys, or ``None``."""
        return self._k

    def v(self) -> Any:
        """All values, or ``None``."""
        return self._v

    k_mut, v_mut = k, v

    def dim(self) -> DimLike:
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

    def into_inner(self) -> tuple[Any, Any] | None:
        """Keys and values, or ``None``; the cache is empty afterwards."""
        inner = None if self._k is None else (self._k, self._v)
        self.reset()
        return inner


def _joined(held: Any, new: Any, axis: int) -> Any:
    return (LazyTensor if isinstance(new, LazyTensor) else Tensor).cat([new._lift(held), new], axis)

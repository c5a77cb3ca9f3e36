"""What the caches of keys and values share."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ...constructors import New
from ...error import ShapeMismatchError
from ...shape import DimLike
from ...tensor.base import TensorBase
from .block import Block


class Half(Protocol):
    """A cache of keys or of values."""

    _block: Block

    def current_data(self) -> Any:
        """The entries."""

    def current_seq_len(self) -> int:
        """How many there are."""

    def reset(self) -> None:
        """Forget them."""


H = TypeVar("H", bound=Half)


class Pair(New, Generic[H]):
    """Base of caches of keys and values, in a cache ``half`` each."""

    half: ClassVar[type[Any]]

    def __init__(self, dim: DimLike, max_seq_len: int) -> None:
        self._k: H = self.half(dim, max_seq_len)
        self._v: H = self.half(dim, max_seq_len)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self._k}, v={self._v})"

    def k_cache(self) -> H:
        """The cache of the keys."""
        return self._k

    def v_cache(self) -> H:
        """The cache of the values."""
        return self._v

    k_cache_mut, v_cache_mut = k_cache, v_cache

    def k(self) -> Any:
        """The keys that are there, ``None`` before the first append."""
        return self._k.current_data()

    def v(self) -> Any:
        """The values that are there, ``None`` before the first append."""
        return self._v.current_data()

    def current_seq_len(self) -> int:
        """How many keys were appended."""
        return self._k.current_seq_len()

    def reset(self) -> None:
        """Forget everything."""
        self._k.reset()
        self._v.reset()


def expect_pair(keys: Block, values: Block, k: TensorBase, v: TensorBase) -> int:
    """How many entries both have. Raises, before anything has changed, unless both can be appended."""
    count, other = keys.expect("keys", k), values.expect("values", v)
    if count != other:
        raise ShapeMismatchError(
            f"append: got keys {list(k.shape)} and values {list(v.shape)}; takes as many of both in dim {keys.axis(k)}"
        )
    return count

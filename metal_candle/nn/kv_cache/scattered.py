"""Caches of several streams that move on independently. candle: ``candle_nn::kv_cache::ScatteredKvCache``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ...constructors import New
from ...device import Device, DeviceLike
from ...dtype import DType, DTypeLike
from ...error import ArgumentValueError, InvalidIndexError, ShapeMismatchError, UnsupportedDTypeForOpError
from ...graph.node import current_trace
from ...graph.operation import Gradients, Meta, Operation
from ...graph.operations.counts import integer
from ...tensor.eager import Tensor
from ...tensor.lazy import LazyTensor
from .block import expect_like, expect_place
from .store import Store


@dataclass(frozen=True)
class IndicesAndMask:
    """Where a cache puts the next entries of each stream, and what these may look at; every layer takes the same."""

    _indices: Tensor
    _mask: Tensor
    _places: Tensor

    def indices(self) -> Tensor:
        """The place of each new entry, U32 ``(b, t)``; of a stream that does not move on, its next one t times."""
        return self._indices

    def mask(self) -> Tensor:
        """0 where a new entry may look, minus infinity elsewhere, to be added to the scores.

        ``(b, 1, t, context)``; where t is ``context`` or more ``(t, t)``, as the new entries are given back alone. A
        stream that does not move on sees everything, as what is computed for it counts for nothing.
        """
        return self._mask


class ScatteredWrite(Operation):
    """A cache ``(b, h, context, d)`` with entries of ``(b, h, t, d)`` in it.

    The third input has a column for each: its stream, where it is in t, and its place. They name no place twice.
    """

    arity = 3
    work = "move"

    def infer(self, cache: Meta, new: Meta, places: Meta) -> Meta:
        return cache

    def lower(self, cache: mx.array, new: mx.array, places: mx.array) -> mx.array:
        if not places.size:
            return cache
        stream, token, place = places
        written = cache[...]  # a handle of its own: only that one is given the changed array
        written[stream, :, place] = new[stream, :, token]
        return written

    @staticmethod
    def numpy(cache: Any, new: Any, places: Any) -> Any:
        stream, token, place = places
        written = cache.copy()
        written[stream, :, place] = new[stream, :, token]
        return written

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        _, new, places = inputs
        if not places.size:
            return cotangent, mx.zeros_like(new), None
        stream, token, place = places
        kept, of_new = cotangent[...], mx.zeros_like(new)
        kept[stream, :, place] = mx.array(0, cotangent.dtype)
        of_new[stream, :, token] = cotangent[stream, :, place]
        return kept, of_new, None


class ScatteredKvCache:
    """Keys and values of several streams, ``(b, heads, context, head_dim)``, made by ``ScatteredCacheBuilder``.

    What ``append`` gives keeps its values, candle's changes with the cache; for that MLX copies the cache if it is
    still held at the next append. Gradients pass through.
    """

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self._k: Any = Store(k.mlx(), k.device)
        self._v: Any = Store(v.mlx(), v.device)
        self._shape, self._dtype = k.shape, k.dtype
        self._trace = current_trace()

    def __repr__(self) -> str:
        return f"ScatteredKvCache({list(self._shape)} {self._dtype})"

    def append(self, k: Any, v: Any, iam: IndicesAndMask) -> tuple[Any, Any]:
        """The caches with keys and values ``(b, heads, t, head_dim)`` at the places of ``iam``.

        Of ``context`` new entries or more these alone are given back; the cache takes the last of them, where candle's
        takes none. Of a stream that does not move on it takes nothing, where candle's takes what the stream's next
        entry overwrites.
        Raises ``ShapeMismatchError``, ``DTypeMismatchError``; nothing has changed then.
        """
        expect_place(self._trace)
        for what, new in (("keys", k), ("values", v)):
            expect_like(what, new, self._shape, self._dtype, 2, self._shape[2])
            batch, count = iam.indices().dims2()
            if new.shape[2] != count or new.shape[0] != batch:
                takes = f"as many as its indices were made for, {count} of {batch} streams"
                raise ShapeMismatchError(f"append: got {what} {list(new.shape)}; takes {takes}")
        self._k, self._v = _written(self._k, k, iam), _written(self._v, v, iam)
        both = (k, v) if k.shape[2] >= self._shape[2] else (_snapshot(self._k), _snapshot(self._v))
        Store.start(*[held for held in (self._k, self._v) if isinstance(held, Store)])
        return both

    def k(self) -> Any:
        """All keys, 0 where nothing was written."""
        return _started(self._k)

    def v(self) -> Any:
        """All values, 0 where nothing was written."""
        return _started(self._v)


def _written(held: Any, new: Any, iam: IndicesAndMask) -> Any:
    """What is held, a store or a tensor, with the new entries: a tensor once those are values."""
    if isinstance(held, Store):
        if not (isinstance(new, LazyTensor) or new.track_op() or current_trace() is not None):
            stream, token, place = iam._places.mlx()
            if stream.size:
                held.write((stream, slice(None), place), new.mlx()[stream, :, token])
            return held
        held = _started(held)
    return new._lift(held)._record(ScatteredWrite(), new, new._lift(iam._places))


def _snapshot(held: Any) -> Any:
    return held.snapshot() if isinstance(held, Store) else held


def _started(held: Any) -> Any:
    """The snapshot, with its computation begun."""
    shown = _snapshot(held)
    if isinstance(held, Store):
        Store.start(held)
    return shown


class ScatteredCacheBuilder(New):
    """Where each of ``batch_size`` streams is, for caches of its last ``context`` entries.

    Every step asks for ``indices_and_mask`` once, and hands it to the caches of all layers.
    """

    def __init__(self, batch_size: int, context: int, dtype: DTypeLike, device: DeviceLike = None) -> None:
        self._context = integer("ScatteredCacheBuilder", "context", context, 1)
        self._dtype, self._device = DType.of(dtype), Device.of(device)
        if not self._dtype.is_float():
            raise UnsupportedDTypeForOpError("ScatteredCacheBuilder", self._dtype, "a dtype of floats")
        size = integer("ScatteredCacheBuilder", "batch_size", batch_size, 0)
        self._positions, self._next = [0] * size, [0] * size

    def __repr__(self) -> str:
        return f"ScatteredCacheBuilder(batch_size={self.batch_size()}, context={self._context})"

    def make_cache(self, num_heads: int, head_dim: int) -> ScatteredKvCache:
        """An empty cache ``(batch_size, num_heads, context, head_dim)``."""
        shape = (self.batch_size(), num_heads, self._context, head_dim)
        return ScatteredKvCache(*(Tensor.zeros(shape, self._dtype, self._device) for _ in range(2)))

    def positions(self) -> list[int]:
        """How many entries each stream has had; the position of its next one."""
        return list(self._positions)

    def batch_size(self) -> int:
        """The number of streams."""
        return len(self._positions)

    def device(self) -> Device:
        """Where caches and masks are."""
        return self._device

    def reset(self) -> None:
        """Begin all streams anew; masks hide what caches still hold of them."""
        self._positions, self._next = [0] * self.batch_size(), [0] * self.batch_size()

    def reset_batch_index(self, batch_index: int) -> None:
        """Begin one stream anew. Raises ``InvalidIndexError``."""
        if not 0 <= batch_index < self.batch_size():
            raise InvalidIndexError("reset_batch_index", batch_index, self.batch_size())
        self._positions[batch_index] = self._next[batch_index] = 0

    def indices_and_mask(self, seq_len: int, batch_mask: Sequence[bool]) -> IndicesAndMask:
        """Move on by ``seq_len`` entries in each stream for which ``batch_mask`` holds.

        Raises ``ArgumentValueError`` unless there is a bool for each stream.
        """
        count, size, context = integer("indices_and_mask", "seq_len", seq_len, 1), self.batch_size(), self._context
        if len(batch_mask) != size:
            raise ArgumentValueError(f"indices_and_mask: got {len(batch_mask)} bools; takes one for each of {size}")
        moves = np.array(batch_mask, bool).reshape(size, 1)
        first, start = np.array(self._next).reshape(size, 1), np.array(self._positions).reshape(size, 1)
        indices = np.where(moves, (first + np.arange(count)) % context, first)
        # Of more than there are places the last ones stay.
        stream, token = np.nonzero(np.broadcast_to(moves & (np.arange(count) >= count - context), indices.shape))
        mask = _window(count, context) if count >= context else _ahead(first, start, moves, count, context)
        self._next = [int(at) for at in np.where(moves, first + count, first)[:, 0] % context]
        self._positions = [int(at) for at in np.where(moves, start + count, start)[:, 0]]

        def tensor(values: Any, dtype: Any) -> Tensor:
            return Tensor.new(values.astype(dtype), self._device)

        places = np.stack([stream, token, indices[stream, token]])
        hidden = tensor(np.where(mask, -np.inf, 0.0), np.float32).to_dtype(self._dtype)
        return IndicesAndMask(tensor(indices, np.uint32), hidden, tensor(places, np.uint32))


def _window(count: int, context: int) -> Any:
    """What of its own kind each of ``count`` entries may not see: later ones, and those over ``context`` earlier."""
    own, other = np.arange(count)[:, None], np.arange(count)
    return (other > own) | (other + context < own)


def _ahead(first: Any, start: Any, moves: Any, count: int, context: int) -> Any:
    """Which places new entries may not see, ``(b, 1, t, context)``: what is empty or comes later.

    ``first`` and ``start`` are place and position of each stream's next entry.
    """
    # The position that will be at a place when the new entries are there; what is behind none is still empty.
    newest = start + count - 1 - (first + count - 1 - np.arange(context)) % context
    own = start[:, :, None] + np.arange(count)[:, None]
    hidden = (newest[:, None] > own) | (newest[:, None] < 0)
    return (hidden & moves[:, :, None])[:, None]

"""``RotatingCache`` and ``RotatingKvCache``: the last entries of a sequence, in a ring."""

from __future__ import annotations

import copy
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, error
from metal_candle.nn import ops
from metal_candle.nn.kv_cache import RotatingCache, RotatingKvCache

import numpy as np
import pytest
from caching import KINDS, attend, entries
from checking import assert_slopes
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, assert_near


def numbers(*values: float) -> list[float]:
    return [float(value) for value in values]


@KINDS
def test_the_numbers_of_candles_own_test(kind: Any) -> None:
    cache = RotatingCache(0, 6)
    steps: list[tuple[list[int], list[int], int, int]] = [
        ([1, 2, 3], [1, 2, 3], 3, 3),
        ([4], [1, 2, 3, 4], 4, 4),
        ([0, 5, 6, 7], [6, 7, 3, 4, 0, 5], 8, 2),
        ([8], [6, 7, 8, 4, 0, 5], 9, 3),
        ([9, 10, 11], [6, 7, 8, 9, 10, 11], 12, 0),
        ([12], [12, 7, 8, 9, 10, 11], 13, 1),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8], 22, 0),
        ([42], [42, 4, 5, 6, 7, 8], 23, 1),
    ]
    masks = {
        13: {2: [[0, 0, 1, 0, 0, 0], [0] * 6], 3: [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0], [0] * 6]},
        22: {2: [[0, 1, 0, 0, 0, 0], [0] * 6], 3: [[0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0] * 6]},
    }
    for _ in range(2):
        assert (cache.offset(), cache.current_seq_len(), cache.current_data(), cache.all_data()) == (0, 0, None, None)
        for new, want, length, offset in steps:
            given = cache.append(kind.new(numbers(*new)))
            assert isinstance(given, kind)
            assert given.to_vec1() == want
            assert (cache.current_seq_len(), cache.offset()) == (length, offset)
            assert cache.current_data().to_vec1() == want[-6:]
            for count, mask in masks.get(length, {}).items():
                assert cache.attn_mask(count, Device.Cpu).to_vec2() == mask
            assert cache.attn_mask(1) is None
        cache.reset()
    assert (cache.dim(), cache.max_seq_len()) == (0, 6)


@settings(deadline=None, max_examples=60)
@given(
    chunks=st.lists(st.one_of(st.integers(0, 9), st.just("reset")), max_size=12),
    room=st.integers(1, 6),
    lazy=st.booleans(),
)
def test_is_a_list_of_the_last_entries(chunks: list[Any], room: int, lazy: bool) -> None:
    cache, kind = RotatingKvCache(2, room), LazyTensor if lazy else Tensor
    seen: list[float] = []
    earlier: list[tuple[Any, list[float]]] = []
    for chunk in chunks:
        if chunk == "reset":
            cache.reset()
            assert (cache.k(), cache.v(), cache.current_seq_len(), cache.offset()) == (None, None, 0, 0)
            seen = []
            continue
        new = [float(len(earlier) * 10 + i) for i in range(chunk)]
        positions = cache.positions(chunk)
        mask = cache.attn_mask(chunk)
        seen = seen + new
        array = np.array(new, np.float32).reshape(1, 1, -1, 1)
        k, v = cache.append(kind.new(array), kind.new(-array))
        # Whatever the order: what is there, and nothing else, under the position that is said.
        first = len(seen) - (chunk if chunk >= room else min(len(seen), room))
        assert sorted(positions) == list(range(first, len(seen)))
        assert k.numpy().reshape(-1).tolist() == [seen[position] for position in positions]
        np.testing.assert_array_equal(v.numpy(), -k.numpy())
        if chunk != 1:
            own = np.arange(len(seen) - chunk, len(seen))[:, None]
            hidden = (np.array(positions) > own) | (np.array(positions) + room < own)
            assert mask.dtype is DType.U8
            np.testing.assert_array_equal(mask.numpy(), hidden)
        whole = cache.k_cache().all_data().numpy().reshape(-1)
        kept = min(len(seen), room)
        assert sorted(cache.k().numpy().reshape(-1)) == sorted(seen[len(seen) - kept :])
        assert whole[kept:].tolist() == [0.0] * (room - kept)
        earlier.append((k, k.numpy().reshape(-1).tolist()))
    for k, want in earlier:
        assert k.numpy().reshape(-1).tolist() == want


@KINDS
@pytest.mark.parametrize("chunks", [[1] * 14, [3, 1, 1, 4, 2, 1, 2], [7, 2, 1, 1, 3], [6, 6, 2]])
def test_attention_is_that_over_the_whole_sequence_in_a_window(kind: Any, chunks: list[int]) -> None:
    window = 5
    cache, outputs, first = RotatingKvCache(2, window), [], 0
    hidden = np.ones((14, 14), bool)
    for count in chunks:
        mask = cache.attn_mask(count)
        q, k, v = (kind.new(entries(first + 100 * i, count)) for i in range(3))
        keys, values = cache.append(k, v)
        far = None if mask is None else Tensor.new(np.where(mask.numpy() == 1, -np.inf, 0.0).astype(np.float32))
        outputs.append(ops.sdpa(q, keys, values, mask=far, scale=1.0).numpy())
        # What several new entries overwrite none of them sees; as many as the window see only themselves.
        for position in range(first, first + count):
            oldest = max(first, position - window) if count >= window else first + count - window
            hidden[position, max(0, oldest) : position + 1] = False
        first += count
    if max(chunks) == 1:
        assert (hidden == ~(np.tri(14, dtype=bool) & ~np.tri(14, k=-window, dtype=bool))).all()
    q, k, v = (entries(100 * i, 14) for i in range(3))
    assert_near(np.concatenate(outputs, 2), attend(q, k, v, hidden), VALUE[DType.F32])


def test_positions_of_just_as_many_as_there_is_room_for() -> None:
    """They come back in their order, wherever the ring was; candle's ``positions`` says another one."""
    cache = RotatingCache(0, 4)
    cache.append(Tensor.new(numbers(0, 1)))
    positions = cache.positions(4)
    assert cache.append(Tensor.new(numbers(2, 3, 4, 5))).to_vec1() == positions == [2, 3, 4, 5]


@KINDS
def test_gradients_pass_through(kind: Any) -> None:
    def function(a: Any, b: Any, c: Any) -> Any:
        cache = RotatingKvCache(2, 4)
        first, _ = cache.append(a, a)
        cache.append(b, b * c.sum_all().broadcast_as(b.shape))
        k, v = cache.append(c, c * 2.0)
        return k * v * first.sum_all().broadcast_as(k.shape)

    assert_slopes(function, *(entries(i, count).astype(np.float64) for i, count in ((0, 3), (5, 2), (9, 2))))


def test_the_graph_does_not_grow_with_evaluated_steps() -> None:
    cache, sizes = RotatingKvCache(2, 4), []
    for step in range(12):
        q = LazyTensor.new(entries(step, 1))
        k, v = cache.append(q * 2.0, q * 3.0)
        output = ops.sdpa(q, k, v)
        sizes.append(output.graph_size())
        output.eval()
    assert len(set(sizes[5:])) == 1
    np.testing.assert_array_equal(cache.k().numpy(), 2 * entries(8, 4))


def test_inside_a_compiled_function_and_copied() -> None:
    def function(a: Any, b: Any) -> Any:
        cache = RotatingCache(2, 4)
        cache.append(a)
        return cache.append(b)

    a, b = Tensor.new(entries(0, 3)), Tensor.new(entries(3, 2))
    want = np.concatenate([entries(4, 1), entries(1, 3)], 2)
    np.testing.assert_array_equal(mc.compile(function)(a, b).numpy(), want)
    cache = RotatingCache.new(2, 4)
    cache.append(a)
    other = copy.deepcopy(cache)
    np.testing.assert_array_equal(other.append(b).numpy(), want)
    np.testing.assert_array_equal(cache.current_data().numpy(), entries(0, 3))


def test_the_pair() -> None:
    cache = RotatingKvCache.new(2, 4)
    cache.append(Tensor.new(entries(0, 6)), Tensor.new(entries(0, 6, width=2)))
    assert (cache.offset(), cache.current_seq_len(), cache.positions(1)) == (0, 6, [6, 3, 4, 5])
    assert cache.k_cache() is cache.k_cache_mut()
    assert cache.v_cache_mut().current_data().dims() == cache.v().dims() == [1, 2, 4, 2]
    assert cache.attn_mask(2, "cpu").to_vec2() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    with pytest.raises(error.ShapeMismatchError, match=r"got values \[1, 2, 1, 4\] after \[1, 2, 4, 2\]; takes shapes"):
        cache.append(Tensor.new(entries(6, 1)), Tensor.new(entries(6, 1)))
    assert (cache.current_seq_len(), cache.k_cache().current_seq_len(), cache.positions(0)) == (6, 6, [2, 3, 4, 5])
    with pytest.raises(error.ShapeMismatchError, match="RotatingCache: got max_seq_len 0; takes 1 or more"):
        RotatingKvCache(2, 0)
    with pytest.raises(error.ShapeMismatchError, match="attn_mask: got seq_len -1; takes 0 or more"):
        cache.attn_mask(-1)

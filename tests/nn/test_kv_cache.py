"""``Cache``, ``KvCache`` and ``ConcatKvCache``: everything that was appended, in order."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var, error, nn
from metal_candle.nn import ops
from metal_candle.nn.kv_cache import Cache, ConcatKvCache, KvCache

import numpy as np
import pytest
from caching import KINDS, attend, entries
from checking import assert_slopes
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, assert_near

PAIRS = pytest.mark.parametrize("make", [lambda: KvCache(2, 4), lambda: ConcatKvCache(2)], ids=["KvCache", "Concat"])


@KINDS
def test_the_numbers_of_candles_own_test(kind: Any) -> None:
    cache = Cache(0, 16)
    for _ in range(2):
        assert (cache.current_seq_len(), cache.current_data(), cache.all_data()) == (0, None, None)
        for part, want in (
            ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
            ([4.0], [1.0, 2.0, 3.0, 4.0]),
            ([0.0, 5.0, 6.0, 7.0], [1.0, 2.0, 3.0, 4.0, 0.0, 5.0, 6.0, 7.0]),
        ):
            cache.append(kind.new(part))
            assert isinstance(cache.current_data(), kind)
            assert cache.current_data().to_vec1() == want
        assert (cache.current_seq_len(), cache.max_seq_len(), cache.dim()) == (8, 16, 0)
        assert cache.all_data().to_vec1() == [1, 2, 3, 4, 0, 5, 6, 7] + [0] * 8
        cache.reset()


@KINDS
def test_the_block_grows_by_its_first_size(kind: Any) -> None:
    cache = Cache.new(1, 3)
    cache.append(kind.new([[1.0, 2.0], [3.0, 4.0]]))
    kept = cache.current_data()
    cache.append(kind.new([[5.0] * 5, [6.0] * 5]))
    assert (cache.current_seq_len(), cache.max_seq_len(), cache.all_data().dims()) == (7, 9, [2, 9])
    assert cache.current_data().to_vec2() == [[1.0, 2.0, *[5.0] * 5], [3.0, 4.0, *[6.0] * 5]]
    assert kept.to_vec2() == [[1.0, 2.0], [3.0, 4.0]]
    cache.reset()
    cache.append(kind.new([[1.0], [2.0]]))
    assert (cache.max_seq_len(), cache.all_data().dims()) == (9, [2, 9])  # as in candle, it stays large


CHUNKS = st.lists(st.one_of(st.integers(0, 9), st.just("reset")), max_size=12)


@settings(deadline=None, max_examples=40)
@given(chunks=CHUNKS, room=st.integers(1, 8), lazy=st.booleans(), concat=st.booleans())
def test_is_a_list_of_all_entries(chunks: list[Any], room: int, lazy: bool, concat: bool) -> None:
    cache: Any = ConcatKvCache(2) if concat else KvCache(2, room)
    kind: Any = LazyTensor if lazy else Tensor
    seen: list[float] = []
    earlier: list[tuple[Any, list[float]]] = []
    for chunk in chunks:
        if chunk == "reset":
            cache.reset()
            assert (cache.k(), cache.v(), cache.current_seq_len()) == (None, None, 0)
            seen = []
            continue
        new = [float(len(earlier) * 10 + i) for i in range(chunk)]
        seen = seen + new
        array = np.array(new, np.float32).reshape(1, 1, -1, 1)
        k, v = cache.append(kind.new(array), kind.new(-np.concatenate([array, array], 3)))
        assert (cache.current_seq_len(), k.dims(), v.dims()) == (len(seen), [1, 1, len(seen), 1], [1, 1, len(seen), 2])
        np.testing.assert_array_equal(v.numpy()[0, 0], np.stack([seen, seen], 1).reshape(-1, 2) * -1)
        earlier.append((k, seen))
    # What was given away keeps its values, held and not looked at until now.
    for k, want in earlier:
        np.testing.assert_array_equal(k.numpy().reshape(-1), want)


@KINDS
@PAIRS
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 1, 3], [9], [2, 7]])
def test_attention_is_that_over_the_whole_sequence(kind: Any, make: Any, chunks: list[int]) -> None:
    cache, outputs, first = make(), [], 0
    for count in chunks:
        q, k, v = (kind.new(entries(first + 100 * i, count, heads=2)) for i in range(3))
        keys, values = cache.append(k, v)
        outputs.append(ops.sdpa(q, keys, values, do_causal=True, scale=1.0).numpy())
        first += count
    q, k, v = (entries(100 * i, 9, heads=2) for i in range(3))
    want = attend(q, k, v, ~np.tri(9, dtype=bool))
    assert_near(np.concatenate(outputs, 2), want, VALUE[DType.F32])


@KINDS
@PAIRS
def test_gradients_pass_through(kind: Any, make: Any) -> None:
    def function(a: Any, b: Any, c: Any) -> Any:
        cache = make()
        cache.append(a, a * a)
        cache.append(b, b * c)
        k, v = cache.append(c, c)
        return k * v

    assert_slopes(function, *(entries(i, count).astype(np.float64) for i, count in ((0, 3), (5, 2), (9, 2))))


def test_a_variable_among_others() -> None:
    cache = KvCache(0, 8)
    variable = Var.new([1.0, 2.0])
    cache.append(Tensor.new([5.0]), Tensor.new([5.0]))
    before, _ = cache.append(Tensor.new([6.0]), Tensor.new([6.0]))
    k, _ = cache.append(variable * 3.0, Tensor.new([0.0, 0.0]))
    assert (k.to_vec1(), before.to_vec1()) == ([5.0, 6.0, 3.0, 6.0], [5.0, 6.0])
    assert k.sum_all().backward()[variable].to_vec1() == [3.0, 3.0]
    k, _ = cache.append(Tensor.new([7.0]), Tensor.new([7.0]))
    assert k.to_vec1() == [5.0, 6.0, 3.0, 6.0, 7.0]
    assert cache.k_cache().all_data().to_vec1() == [5.0, 6.0, 3.0, 6.0, 7.0, 0.0, 0.0, 0.0]


@PAIRS
def test_the_graph_does_not_grow_with_evaluated_steps(make: Any) -> None:
    cache, sizes = make(), []
    for step in range(12):
        q = LazyTensor.new(entries(step, 1))
        k, v = cache.append(q * 2.0, q * 3.0)
        output = ops.sdpa(q, k, v)
        sizes.append(output.graph_size())
        output.eval()
        assert (k.is_evaluated(), v.is_evaluated()) == (True, True)
    assert len(set(sizes[1:])) == 1
    assert cache.k().graph_size() == 1


@PAIRS
def test_eager_first_and_lazy_afterwards(make: Any) -> None:
    cache = make()
    cache.append(Tensor.new(entries(0, 3)), Tensor.new(entries(0, 3)))
    k, _ = cache.append(LazyTensor.new(entries(3, 2)), LazyTensor.new(entries(3, 2)))
    assert isinstance(k, LazyTensor)
    np.testing.assert_array_equal(k.numpy(), entries(0, 5))
    with pytest.raises(error.Error, match=r"got a LazyTensor beside an eager tensor; lift"):
        cache.append(Tensor.new(entries(5, 1)), Tensor.new(entries(5, 1)))
    assert cache.current_seq_len() == 5


@PAIRS
def test_inside_a_compiled_function(make: Any) -> None:
    def function(a: Any, b: Any) -> Any:
        cache = make()
        cache.append(a, a)
        k, v = cache.append(b, b)
        return k + v * 2.0

    a, b = Tensor.new(entries(0, 3)), Tensor.new(entries(3, 2))
    compiled = mc.compile(function)
    for _ in range(2):
        np.testing.assert_allclose(compiled(a, b).numpy(), 3 * entries(0, 5), rtol=1e-6)
    outside = make()
    with pytest.raises(error.Error, match="append: got a cache from outside of the function that compile is tracing"):
        mc.compile(lambda x: outside.append(x, x)[0])(a)


@PAIRS
def test_copies_go_their_own_way(make: Any) -> None:
    cache = make()
    cache.append(Tensor.new(entries(0, 2)), Tensor.new(entries(0, 2)))
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        other.append(Tensor.new(entries(2, 1)), Tensor.new(entries(2, 1)))
        np.testing.assert_array_equal(other.k().numpy(), entries(0, 3))
    cache.append(Tensor.new(entries(7, 1)), Tensor.new(entries(7, 1)))
    np.testing.assert_array_equal(cache.k().numpy()[:, :, 2:], entries(7, 1))


def test_what_is_given_away_is_a_tensor_like_others() -> None:
    """Views of it, writing into it, copying it: nothing of that reaches the cache, and no append reaches it."""
    cache = KvCache(2, 4)
    k, v = cache.append(Tensor.new(entries(0, 3)), Tensor.new(entries(0, 3)))
    turned, part, deep = k.transpose(2, 3), k.narrow(2, 1, 1), copy.deepcopy(v)
    later = pickle.loads(pickle.dumps(k))
    v.zero_set()
    cache.append(Tensor.new(entries(3, 1)), Tensor.new(entries(3, 1)))
    for got, want in (
        (turned, np.swapaxes(entries(0, 3), 2, 3)),
        (part, entries(1, 1)),
        (deep, entries(0, 3)),
        (later, entries(0, 3)),
        (k, entries(0, 3)),
        (v, np.zeros_like(entries(0, 3))),
        (cache.v(), entries(0, 4)),
    ):
        np.testing.assert_array_equal(got.numpy(), want)
    for _ in range(50):  # asking again and again is no write
        again = cache.k()
    np.testing.assert_array_equal(again.numpy(), entries(0, 4))


def test_an_append_is_written_into_the_block() -> None:
    """The block stays where it is in memory while what was given away is held, but for a view of that."""

    def place() -> int:
        array = np.array(cache.k_cache()._block._store.array, copy=False)  # type: ignore[union-attr]
        return int(array.__array_interface__["data"][0])

    cache = KvCache(2, 64)
    k, _ = cache.append(Tensor.new(entries(0, 3)), Tensor.new(entries(0, 3)))
    start = place()
    for position in range(3, 20):
        k, _ = cache.append(Tensor.new(entries(position, 1)), Tensor.new(entries(position, 1)))
        assert k.numpy().shape[2] == position + 1
        assert place() == start
    np.testing.assert_array_equal(k.numpy(), entries(0, 20))


@PAIRS
def test_one_thread_appends_and_another_reads(make: Any) -> None:
    cache = make()
    for position in range(6):
        key = Tensor.new(entries(position, 1))
        appending = threading.Thread(target=lambda key=key: cache.append(key, key))
        appending.start()
        appending.join()
        np.testing.assert_array_equal(cache.k().numpy(), entries(0, position + 1))
    k, _ = cache.append(Tensor.new(entries(6, 1)), Tensor.new(entries(6, 1)))
    np.testing.assert_array_equal(k.numpy(), entries(0, 7))


def test_keys_and_values_by_their_caches() -> None:
    cache = KvCache.new(-2, 4)
    k, v = cache.append(Tensor.new(entries(0, 3)), Tensor.new(entries(0, 3, width=6)))
    assert (k.dims(), v.dims()) == ([1, 2, 3, 4], [1, 2, 3, 6])
    assert cache.k_cache() is cache.k_cache_mut()
    assert cache.v_cache_mut().all_data().dims() == [1, 2, 4, 6]
    assert (cache.k_cache().current_seq_len(), cache.current_seq_len()) == (3, 3)


def test_concat_cache() -> None:
    cache = ConcatKvCache(2)
    assert (cache.is_empty(), cache.into_inner(), cache.k(), cache.v_mut()) == (True, None, None, None)
    for count, total in ((10, 10), (1, 11), (1, 12)):
        k, v = cache.append(Tensor.zeros((1, 8, count, 64)), Tensor.zeros((1, 8, count, 64)))
        assert (k.dims(), v.dims(), cache.current_seq_len()) == ([1, 8, total, 64], [1, 8, total, 64], total)
    assert (cache.dim(), cache.is_empty(), cache.v_mut() is v) == (2, False, True)
    assert cache.k_mut() is cache.k()
    inner = cache.into_inner()
    assert inner is not None
    assert (inner[0] is k, inner[1] is v, cache.is_empty(), cache.current_seq_len()) == (True, True, True, 0)
    other = ConcatKvCache.new(1)
    other.append(Tensor.zeros((1, 3, 8, 64)), Tensor.zeros((1, 3, 8, 64)))
    assert other.append(Tensor.zeros((1, 2, 8, 64)), Tensor.zeros((1, 2, 8, 64)))[0].dims() == [1, 5, 8, 64]


@KINDS
@PAIRS
def test_refuses(kind: Any, make: Any) -> None:
    cache = make()

    def raises(text: str, kind_of: type[Exception], k: Any, v: Any) -> None:
        with pytest.raises(kind_of) as caught:
            cache.append(k, v)
        assert str(caught.value) == text
        assert cache.current_seq_len() == length

    def zeros(*shape: int, dtype: str = "f32") -> Any:
        return kind.zeros(shape, dtype)

    length = 0
    raises(
        "append: dim 2 is out of range for shape (3, 4); takes -2..1",
        error.DimOutOfRangeError,
        zeros(3, 4),
        zeros(3, 4),
    )
    raises(
        "append: got keys [1, 2, 3, 4] and values [1, 2, 2, 4]; takes as many of both in dim 2",
        error.ShapeMismatchError,
        zeros(1, 2, 3, 4),
        zeros(1, 2, 2, 4),
    )
    cache.append(zeros(1, 2, 3, 4), zeros(1, 2, 3, 4))
    length = 3
    one = zeros(1, 2, 1, 4)
    takes = "takes shapes that are equal but for dim 2"
    raises(
        f"append: got keys [2, 2, 1, 4] after [1, 2, 3, 4]; {takes}", error.ShapeMismatchError, zeros(2, 2, 1, 4), one
    )
    raises(
        f"append: got values [1, 2, 1, 5] after [1, 2, 3, 4]; {takes}", error.ShapeMismatchError, one, zeros(1, 2, 1, 5)
    )
    raises(f"append: got keys [2, 2, 1] after [1, 2, 3, 4]; {takes}", error.ShapeMismatchError, zeros(2, 2, 1), one)
    raises(
        "append: values so far and new: dtypes differ, lhs f32, rhs f16; convert one with to_dtype",
        error.DTypeMismatchError,
        one,
        zeros(1, 2, 1, 4, dtype="f16"),
    )
    assert cache.k().dims() == cache.v().dims() == [1, 2, 3, 4]


def test_refuses_no_room_and_no_tensor() -> None:
    with pytest.raises(error.ShapeMismatchError, match="Cache: got max_seq_len 0; takes 1 or more"):
        KvCache(2, 0)
    with pytest.raises(error.ArgumentTypeError, match="Cache: got max_seq_len 'many'; takes an integer"):
        Cache(2, "many")  # type: ignore[arg-type]
    with pytest.raises(error.ArgumentTypeError, match="append: got keys a list; takes a tensor"):
        KvCache(2, 3).append([1.0], [1.0])
    assert nn.kv_cache.KvCache is KvCache

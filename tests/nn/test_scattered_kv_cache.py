"""``ScatteredCacheBuilder`` and ``ScatteredKvCache``: streams that move on independently."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var, error
from metal_candle.nn import ops
from metal_candle.nn.kv_cache import IndicesAndMask, ScatteredCacheBuilder

import numpy as np
import pytest
from caching import KINDS, attend, entries
from checking import assert_slopes
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, assert_near

INF = float("inf")


def test_the_numbers_of_candles_own_test() -> None:
    builder = ScatteredCacheBuilder(2, 5, DType.F32, "cpu")
    o, x = 0.0, -INF
    steps: list[tuple[int, list[bool], Any, Any]] = [
        (1, [True, False], [[0], [0]], [[[o, x, x, x, x]], [[o] * 5]]),
        (1, [True, False], [[1], [0]], [[[o, o, x, x, x]], [[o] * 5]]),
        (
            3,
            [False, True],
            [[2, 2, 2], [0, 1, 2]],
            [[[o] * 5] * 3, [[o, x, x, x, x], [o, o, x, x, x], [o, o, o, x, x]]],
        ),
        (
            3,
            [True, True],
            [[2, 3, 4], [3, 4, 0]],
            [[[o, o, o, x, x], [o, o, o, o, x], [o] * 5], [[x, o, o, o, x], [x, o, o, o, o], [o] * 5]],
        ),
        (1, [True, False], [[0], [1]], [[[o] * 5], [[o] * 5]]),
        (2, [True, False], [[1, 2], [1, 1]], [[[o, o, x, o, o], [o] * 5], [[o] * 5] * 2]),
    ]
    for count, batch_mask, indices, mask in steps:
        iam = builder.indices_and_mask(count, batch_mask)
        assert isinstance(iam, IndicesAndMask)
        assert iam.indices().dtype is DType.U32
        assert iam.indices().to_vec2() == indices
        assert iam.mask().dims() == [2, 1, count, 5]
        assert iam.mask().i((slice(None), 0)).to_vec3() == mask
    assert builder.positions() == [8, 6]


STEP = st.tuples(st.integers(1, 7), st.lists(st.booleans(), min_size=3, max_size=3))


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(st.one_of(STEP, st.integers(0, 2), st.just("reset")), max_size=10),
    context=st.integers(1, 5),
    lazy=st.booleans(),
)
def test_is_a_list_for_each_stream(steps: list[Any], context: int, lazy: bool) -> None:
    builder = ScatteredCacheBuilder.new(3, context, "f32", "cpu")
    cache, kind = builder.make_cache(1, 2), LazyTensor if lazy else Tensor
    seen: list[list[float]] = [[], [], []]
    earlier = []
    number = 0.0
    for step in steps:
        if step == "reset":
            builder.reset()
            seen = [[], [], []]
        elif isinstance(step, int):
            builder.reset_batch_index(step)
            seen[step] = []
        else:
            count, moves = step
            new = number + np.arange(3 * count * 2, dtype=np.float32).reshape(3, 1, count, 2)
            number += new.size
            iam = builder.indices_and_mask(count, moves)
            k, v = cache.append(kind.new(new), kind.new(-new), iam)
            for i in range(3):
                seen[i] += new[i, 0, :, 0].tolist() if moves[i] else []
            np.testing.assert_array_equal(v.numpy(), -k.numpy())
            mask = iam.mask().numpy()
            written = iam._places.numpy()[[0, 2]].T
            assert len({tuple(place) for place in written.tolist()}) == len(written) == sum(moves) * min(count, context)
            for i in np.flatnonzero(moves):
                got, hidden = k.numpy()[i, 0, :, 0], (mask if count >= context else mask[i, 0]) < 0
                for t in range(count):
                    # All that is there, up to the entry itself.
                    last = len(seen[i]) - count + t + 1
                    first = len(seen[i]) - context if count < context else max(len(seen[i]) - count, last - 1 - context)
                    assert sorted(got[~hidden[t]]) == seen[i][max(0, first) : last]
            earlier.append((k, k.numpy()))
        assert builder.positions() == [len(one) for one in seen]
        for i in range(3):
            there = seen[i][-context:]
            assert set(there) <= set(cache.k().numpy()[i, 0, :, 0].tolist())
    for k, want in earlier:
        np.testing.assert_array_equal(k.numpy(), want)


@KINDS
def test_attention_is_that_over_each_whole_stream_in_a_window(kind: Any) -> None:
    context, moved = (
        4,
        [(2, [True, False]), (1, [True, True]), (1, [False, True]), (3, [True, True]), (1, [True, True])],
    )
    builder = ScatteredCacheBuilder(2, context, "f32", "cpu")
    cache = builder.make_cache(2, 4)
    wanted = []
    for count, moves in moved:
        starts = builder.positions()
        q, k, v = (
            np.concatenate([entries(1000 * (i + 1) + 100 * j + starts[i], count) for i in range(2)]) for j in range(3)
        )
        iam = builder.indices_and_mask(count, moves)
        keys, values = cache.append(kind.new(k), kind.new(v), iam)
        output = ops.sdpa(kind.new(q), keys, values, mask=iam.mask(), scale=1.0).numpy()
        assert np.isfinite(output).all()
        for i in np.flatnonzero(moves):
            end = starts[i] + count
            first = max(0, end - context)
            k, v = (entries(1000 * (i + 1) + 100 * j + first, end - first) for j in (1, 2))
            hidden = np.arange(first, end) > np.arange(starts[i], end)[:, None]
            wanted.append((output[i : i + 1], attend(q[i : i + 1], k, v, hidden)))
    assert len(wanted) == 8
    for got, want in wanted:
        assert_near(got, want, VALUE[DType.F32])


@KINDS
def test_gradients_pass_through(kind: Any) -> None:
    def function(a: Any, b: Any) -> Any:
        builder = ScatteredCacheBuilder(2, 4, DType.F64, "cpu")
        cache = builder.make_cache(2, 3)
        cache.append(a, a, builder.indices_and_mask(3, [True, True]))
        k, v = cache.append(b, b, builder.indices_and_mask(2, [True, False]))
        return k * v

    assert_slopes(function, *(entries(i, n, 2, 2, 3).astype(np.float64) for i, n in ((0, 3), (7, 2))))


def test_one_stream_among_others_has_a_variable() -> None:
    builder = ScatteredCacheBuilder(1, 3, "f32")
    cache = builder.make_cache(1, 1)
    one, variable = Tensor.ones((1, 1, 1, 1)), Var.ones((1, 1, 1, 1))
    cache.append(one, one, builder.indices_and_mask(1, [True]))
    k, _ = cache.append(variable * 5.0, one, builder.indices_and_mask(1, [True]))
    assert k.sum_all().backward()[variable].flatten_all().to_vec1() == [5.0]
    assert k.flatten_all().to_vec1() == [1.0, 5.0, 0.0]
    k, v = cache.append(one, one, builder.indices_and_mask(1, [False]))
    assert (k.flatten_all().to_vec1(), v.flatten_all().to_vec1()) == ([1.0, 5.0, 0.0], [1.0, 1.0, 0.0])


def test_the_graph_does_not_grow_with_evaluated_steps() -> None:
    builder = ScatteredCacheBuilder(1, 4, "f32")
    cache, sizes = builder.make_cache(2, 4), []
    for step in range(8):
        q = LazyTensor.new(entries(step, 1))
        iam = builder.indices_and_mask(1, [True])
        k, v = cache.append(q * 2.0, q * 3.0, iam)
        output = ops.sdpa(q, k, v, mask=iam.mask())
        sizes.append(output.graph_size())
        output.eval()
    assert len(set(sizes[1:])) == 1


def test_inside_a_compiled_function() -> None:
    def function(a: Any, b: Any) -> Any:
        builder = ScatteredCacheBuilder(1, 4, "f32")
        cache = builder.make_cache(2, 4)
        cache.append(a, a, builder.indices_and_mask(3, [True]))
        return cache.append(b, b, builder.indices_and_mask(2, [True]))[0]

    got = mc.compile(function)(Tensor.new(entries(0, 3)), Tensor.new(entries(3, 2)))
    np.testing.assert_array_equal(got.numpy(), np.concatenate([entries(4, 1), entries(1, 3)], 2))


def test_halves_and_getters() -> None:
    builder = ScatteredCacheBuilder(2, 3, DType.BF16, "cpu")
    cache = builder.make_cache(4, 8)
    assert (builder.batch_size(), builder.device().is_cpu(), cache.k().dims()) == (2, True, [2, 4, 3, 8])
    for count, dims in ((1, [2, 1, 1, 3]), (5, [5, 5])):
        iam = builder.indices_and_mask(count, [True, True])
        assert (iam.mask().dtype, iam.mask().dims()) == (DType.BF16, dims)
    # As candle's: of 5 new ones each sees up to 3 before it.
    hidden = [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    assert (iam.mask().numpy() < 0).astype(int).tolist() == hidden
    assert cache.v().dtype is DType.BF16


@KINDS
def test_refuses(kind: Any) -> None:
    builder = ScatteredCacheBuilder(2, 3, "f32")
    cache = builder.make_cache(1, 2)

    def raises(text: str, kind_of: type[Exception], function: Any, *arguments: Any) -> None:
        with pytest.raises(kind_of) as caught:
            function(*arguments)
        assert str(caught.value) == text

    iam = builder.indices_and_mask(1, [True, True])
    good = kind.zeros((2, 1, 1, 2))
    raises(
        "append: got keys [2, 1, 2, 2]; takes as many as its indices were made for, 1 of 2 streams",
        error.ShapeMismatchError, cache.append, kind.zeros((2, 1, 2, 2)), good, iam,
    )  # fmt: skip
    raises(
        "append: got values [2, 1, 1, 3] after [2, 1, 3, 2]; takes shapes that are equal but for dim 2",
        error.ShapeMismatchError, cache.append, good, kind.zeros((2, 1, 1, 3)), iam,
    )  # fmt: skip
    raises(
        "indices_and_mask: got 1 bools; takes one for each of 2",
        error.ArgumentValueError, builder.indices_and_mask, 1, [True],
    )  # fmt: skip
    assert builder.positions() == [1, 1]
    with pytest.raises(error.InvalidIndexError, match=r"reset_batch_index: index 2 is out of range; takes 0\.\.1"):
        builder.reset_batch_index(2)
    with pytest.raises(error.UnsupportedDTypeForOpError, match="ScatteredCacheBuilder: got dtype u8; takes a dtype of"):
        ScatteredCacheBuilder(2, 3, "u8")
    with pytest.raises(error.ShapeMismatchError, match="ScatteredCacheBuilder: got context 0; takes 1 or more"):
        ScatteredCacheBuilder(2, 0, "f32")
    with pytest.raises(error.ShapeMismatchError, match="indices_and_mask: got seq_len 0; takes 1 or more"):
        builder.indices_and_mask(0, [True, True])

"""Attention over packed sequences, against each query's softmax written out for each sequence by itself."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var
from metal_candle.error import (
    ArgumentTypeError,
    ArgumentValueError,
    DTypeMismatchError,
    NotEvaluatedError,
    ShapeMismatchBinaryOpError,
    ShapeMismatchError,
    UnexpectedNumberOfDimsError,
    UnsupportedDTypeForOpError,
)
from metal_candle.nn import varlen_attention
from metal_candle.nn.varlen_attention import flash_attn_varlen_cpu, flash_attn_varlen_unfused

import numpy as np
import pytest
from checking import assert_slopes, check, check_dtypes, normal
from hypothesis import given, settings
from hypothesis import strategies as st

SCALE = 0.4
BOTH = pytest.mark.parametrize("function", [flash_attn_varlen_cpu, flash_attn_varlen_unfused])
# Runs of equal lengths, a sequence without queries, one without keys, queries after and before the keys.
QUERIES, KEYS = [2, 2, 0, 3, 1, 2], [4, 4, 3, 3, 1, 5]
WINDOWS = [(None, None), (0, None), (2, None), (1, 0), (0, 1), (2, 3), (50, 50)]


def by_query(
    q: Any,
    k: Any,
    v: Any,
    lengths_q: list[int],
    lengths_k: list[int],
    causal: bool,
    left: int | None = None,
    right: int | None = None,
    slopes: Any = None,
) -> Any:
    """candle's loops in NumPy."""
    heads = q.shape[1]
    group, out = heads // k.shape[1], np.zeros((len(q), heads, v.shape[2]))
    at_q = at_k = 0
    for queries, keys in zip(lengths_q, lengths_k):
        for i, h in np.ndindex(queries, heads):
            place = i + keys - queries
            low, high = 0, keys - 1
            if causal or (left is not None and right is None):
                high = min(high, place)
            if left is not None:
                low = max(low, place - left)
                high = high if right is None else min(high, place + right)
            scores = []
            for j in range(low, high + 1):
                far = max(place - j, 0) if causal else abs(place - j)
                score = SCALE * float(q[at_q + i, h] @ k[at_k + j, h // group])
                scores.append(score if slopes is None else score - slopes[h] * far)
            if scores:
                e = np.exp(np.array(scores) - max(scores))
                out[at_q + i, h] = (e / e.sum()) @ v[at_k + low : at_k + high + 1, h // group]
        at_q, at_k = at_q + queries, at_k + keys
    return out


def packed(lengths_q: list[int], lengths_k: list[int], heads: int = 4, shared: int = 2, d: int = 3) -> tuple[Any, ...]:
    n, m = sum(lengths_q), sum(lengths_k)
    return normal(n, heads, d), normal(m, shared, d, seed=1), normal(m, shared, d, seed=2)


def attending(function: Any, lengths_q: list[int], lengths_k: list[int], causal: bool, *window: int | None) -> Any:
    given = [Tensor.new(np.array(x, np.uint32)) for x in (lengths_q, lengths_k)]

    def attend(q: Any, k: Any, v: Any, slopes: Any = None) -> Any:
        most = max(lengths_q, default=0), max(lengths_k, default=0)
        return function(q, k, v, slopes, *given, *most, SCALE, causal, *window)

    return attend


@BOTH
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("causal", [False, True])
def test_values(function: Any, causal: bool, window: tuple[int | None, int | None]) -> None:
    given = packed(QUERIES, KEYS)
    check(
        attending(function, QUERIES, KEYS, causal, *window),
        given,
        by_query(*given, QUERIES, KEYS, causal, *window),
    )


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("causal", [False, True])
def test_slopes_of_alibi(causal: bool, window: tuple[int | None, int | None]) -> None:
    given, slopes = packed(QUERIES, KEYS), np.array([0.5, 0.25, 0.0, 2.0], np.float32)
    want = by_query(*given, QUERIES, KEYS, causal, *window, slopes=slopes)
    check(attending(flash_attn_varlen_cpu, QUERIES, KEYS, causal, *window), (*given, slopes), want)


@pytest.mark.parametrize("slopes", [False, True])
@pytest.mark.parametrize("window", [(None, None), (0, None), (1, 0), (0, 1), (2, 3)])
def test_queries_that_see_no_key_give_zeros(window: tuple[int | None, int | None], slopes: bool) -> None:
    """More queries than keys, and none: candle's fused function gives zeros, its unfused one NaN or no rows."""
    queries, keys = [5, 3, 2], [2, 0, 2]
    given = packed(queries, keys)
    lines = np.array([0.5, 0.25, 0.0, 2.0], np.float32) if slopes else None
    want = by_query(*given, queries, keys, False, *window, slopes=lines)
    assert not want[5:8].any()
    beside = () if lines is None else (lines,)
    check(attending(flash_attn_varlen_unfused, queries, keys, False, *window), (*given, *beside), want)


def test_dtypes() -> None:
    check_dtypes(
        attending(flash_attn_varlen_cpu, QUERIES, KEYS, True, 2, None),
        packed(QUERIES, KEYS),
        lambda q, k, v: by_query(q, k, v, QUERIES, KEYS, True, 2, None),
    )
    halves = [Tensor.new(x).to_dtype("bf16") for x in packed(QUERIES, KEYS)]
    slopes = Tensor.new([0.5, 0.25, 0.0, 2.0])
    got = attending(flash_attn_varlen_cpu, QUERIES, KEYS, True)(*halves, slopes)
    assert got.dtype is DType.BF16
    want = by_query(*[x.to_dtype("f32").numpy() for x in halves], QUERIES, KEYS, True, slopes=slopes.numpy())
    np.testing.assert_allclose(got.to_dtype("f32").numpy(), want, 1.6e-2, 1.6e-2)


@settings(deadline=None, max_examples=25)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=5),
    causal=st.booleans(),
    left=st.none() | st.integers(0, 4),
    right=st.none() | st.integers(0, 4),
    slopes=st.booleans(),
)
def test_any_lengths(
    pairs: list[tuple[int, int]], causal: bool, left: int | None, right: int | None, slopes: bool
) -> None:
    queries = [min(pair) if causal else pair[0] for pair in pairs]
    keys = [max(pair) if causal else pair[1] for pair in pairs]
    right = None if left is None else right
    lines = np.array([0.5, 0.25], np.float32) if slopes else None
    given = packed(queries, keys, 2, 1)
    attend = attending(flash_attn_varlen_cpu, queries, keys, causal, left, right)
    got = attend(*(Tensor.new(x) for x in given), None if lines is None else Tensor.new(lines))
    assert got.shape == (sum(queries), 2, 3)
    np.testing.assert_allclose(
        got.numpy(), by_query(*given, queries, keys, causal, left, right, slopes=lines), 2e-5, 2e-6
    )


@pytest.mark.parametrize(("causal", "window"), [(True, ()), (False, ()), (False, (1, 0)), (True, (1,))])
def test_gradients(causal: bool, window: tuple[int, ...]) -> None:
    queries, keys = [2, 2, 1], ([3, 3, 1] if causal else [1, 1, 2])
    given = packed(queries, keys, 2, 1, d=2)
    attend = attending(flash_attn_varlen_cpu, queries, keys, causal, *window)
    assert_slopes(attend, *given)
    assert_slopes(attend, *given, np.array([0.5, 0.25]))


def test_what_sees_no_key_gets_no_nan() -> None:
    queries, keys = [4, 2], [1, 0]
    variables = [Var.new(x, Device.Cpu) for x in packed(queries, keys)]
    grads = attending(flash_attn_varlen_cpu, queries, keys, False, 0, 0)(*variables).sum_all().backward()
    for variable in variables:
        assert np.isfinite(grads[variable].numpy()).all()


def test_lengths_in_any_integer_dtype() -> None:
    given = packed([2, 1], [2, 1])
    want = by_query(*given, [2, 1], [2, 1], False)
    for dtype in ("u8", "u32", "i64"):
        lengths = Tensor.new([2, 1]).to_dtype(dtype)
        for held in (lengths, LazyTensor.from_tensor(lengths)):
            q, k, v = (Tensor.new(x) for x in given)
            got = flash_attn_varlen_cpu(q, k, v, None, held, held, 2, 2, SCALE, False)
            np.testing.assert_allclose(got.numpy(), want, 2e-5, 2e-6)


def test_neighbours_of_equal_lengths_are_one_batch() -> None:
    """Eight sequences, two runs: two attentions."""
    given = packed([2] * 5 + [3] * 3, [2] * 5 + [3] * 3)
    attend = attending(flash_attn_varlen_cpu, [2] * 5 + [3] * 3, [2] * 5 + [3] * 3, True)
    result = attend(*(LazyTensor.new(x) for x in given))
    names = [node.operation.name() for node in mc.graph.ComputationGraph(result).nodes()]
    assert names.count("sdpa") == 2


@BOTH
def test_refusals(function: Any) -> None:
    name = function.__name__
    q, k, v = (Tensor.new(x) for x in packed([2, 3], [3, 3]))
    ok_q, ok_k = Tensor.new([2, 3]), Tensor.new([3, 3])

    def call(*given: Any, causal: bool = False, slopes: Any = None, window: tuple[Any, ...] = ()) -> Any:
        q, k, v, lengths_q, lengths_k = given
        return function(q, k, v, slopes, lengths_q, lengths_k, 3, 3, 1.0, causal, *window)

    with pytest.raises(UnexpectedNumberOfDimsError, match=name):
        call(q.unsqueeze(0), k, v, ok_q, ok_k)
    with pytest.raises(DTypeMismatchError, match=name):
        call(q, k.to_dtype("f16"), v, ok_q, ok_k)
    with pytest.raises(ShapeMismatchBinaryOpError, match=f"{name}: .*with h a multiple of kv"):
        call(q.narrow(1, 0, 3), k, v, ok_q, ok_k)
    with pytest.raises(ShapeMismatchBinaryOpError, match=name):
        call(q, k, v.narrow(0, 0, 5), ok_q, ok_k)
    with pytest.raises(
        ShapeMismatchError, match=rf"{name}: got seqlens_q \[2, 2\] for \(5, 4, 3\); takes lengths whose"
    ):
        call(q, k, v, Tensor.new([2, 2]), ok_k)
    with pytest.raises(ShapeMismatchError, match=rf"{name}: got seqlens_k \[7, -1\]"):
        call(q, k, v, ok_q, Tensor.new([7, -1]))
    with pytest.raises(ShapeMismatchError, match=f"{name}: got 2 seqlens_q and 1 seqlens_k; takes as many"):
        call(q, k, v, ok_q, Tensor.new([6]))
    with pytest.raises(ShapeMismatchError, match=f"{name}: got 3 queries and 2 keys for sequence 1; takes no more"):
        call(q, k, v, ok_q, Tensor.new([4, 2]), causal=True)
    with pytest.raises(UnsupportedDTypeForOpError, match="seqlens_q"):
        call(q, k, v, Tensor.new([2.0, 3.0]), ok_k)
    with pytest.raises(UnexpectedNumberOfDimsError, match="seqlens_q"):
        call(q, k, v, Tensor.new([[2, 3]]), ok_k)
    with pytest.raises(ArgumentTypeError, match=f"{name}: got seqlens_q .*takes a tensor of lengths"):
        call(q, k, v, [2, 3], ok_k)
    with pytest.raises(ArgumentValueError, match=f"{name}: got a right window of 1 alone; takes a left one with it"):
        call(q, k, v, ok_q, ok_k, window=(None, 1))
    for window in ((-1, None), (1, -1), (1.5, None)):
        with pytest.raises(ArgumentValueError, match=f"{name}: got a (left|right) window of .*; takes a count or None"):
            call(q, k, v, ok_q, ok_k, window=window)
    with pytest.raises(ShapeMismatchBinaryOpError, match="a slope for each head"):
        call(q, k, v, ok_q, ok_k, slopes=Tensor.new([1.0]))
    with pytest.raises(UnsupportedDTypeForOpError, match="alibi_slopes"):
        call(q, k, v, ok_q, ok_k, slopes=Tensor.new([1, 1, 1, 1]))


def test_lengths_that_are_not_known() -> None:
    """A function that compile traces has no lengths among its arguments."""
    q, k, v = (Tensor.new(x) for x in packed([2], [2]))
    traced = mc.compile(lambda lengths: flash_attn_varlen_cpu(q, k, v, None, lengths, lengths, 2, 2, 1.0, False))
    with pytest.raises(NotEvaluatedError):
        traced(Tensor.new([2]))


def test_names() -> None:
    assert mc.nn.varlen_attention is varlen_attention

"""Attention that is spelled out: masks that hide, dropout, what is held, rows that see nothing, and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from metal_candle import LazyTensor, Tensor, Var, features
from metal_candle.graph.operations.filled_attention import FilledSdpa
from metal_candle.kernels.kernel import on_cpu
from metal_candle.nn import ops

import numpy as np
import pytest
from rewriting import applied

# Of values of about 1: a few roundings of float32 or bfloat16.
TOLERANCE = {"f32": 1e-5, "bf16": 3e-2, "f16": 4e-3}
SHAPES = ((2, 4, 5, 6), (2, 2, 7, 6), (2, 2, 7, 3))


def tensor(*shape: int, seed: int = 0, dtype: str = "f32") -> Tensor:
    return Tensor(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)).to_dtype(dtype)


def lazy(*shape: int, seed: int = 0, dtype: str = "f32") -> LazyTensor:
    return LazyTensor.from_tensor(tensor(*shape, seed=seed, dtype=dtype))


def repeated(x: Any) -> Any:
    b, kv, s, d = x.dims4()
    return x.unsqueeze(2).expand((b, kv, 2, s, d)).reshape((b, 2 * kv, s, d))


def filled(scores: Any, mask: Any, fill: float) -> Any:
    return mask.broadcast_as(scores.shape).where_cond(
        LazyTensor.new(fill).to_dtype(scores.dtype).broadcast_as(scores.shape), scores
    )


def attended(q: Any, k: Any, v: Any, mask: Any, fill: float) -> Any:
    return filled(q @ repeated(k).t() / math.sqrt(6), mask, fill).softmax(-1) @ repeated(v)


def with_gradients(function: Callable[..., Any], tensors: list[Tensor], rewriting: bool) -> list[np.ndarray[Any, Any]]:
    variables = [Var.from_tensor(tensor) for tensor in tensors]
    off = () if rewriting else ("rewrite",)
    with features.disabled(*off):
        y = function(*[LazyTensor.from_tensor(variable) for variable in variables])
        weights = LazyTensor.from_tensor(tensor(*y.shape, seed=9)).to_dtype(y.dtype)
        grads = (y * weights).sum_all().backward()
        found = [y.eval(), *[grads[variable] for variable in variables]]
    return [result.to_dtype("f64").numpy() for result in found]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("fill", [-math.inf, -6e4, 0.5])
def test_filled_scores_of_grouped_heads(fill: float, dtype: str) -> None:
    mask = LazyTensor.new(np.triu(np.ones((5, 7), np.uint8), 3))
    tensors = [tensor(*shape, seed=i, dtype=dtype) for i, shape in enumerate(SHAPES)]
    y = attended(*[LazyTensor.from_tensor(x) for x in tensors], mask, fill)
    names, _ = applied(y)
    assert "filled_sdpa" in names
    assert not {"softmax", "matmul", "where_cond", "reshape"} & set(names)
    found = with_gradients(lambda *given: attended(*given, mask, fill), tensors, True)
    wide = [x.to_dtype("f64") for x in tensors]
    expected = with_gradients(lambda *given: attended(*given, mask, fill), wide, False)
    for got, want in zip(found, expected):
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize(("fill", "expected"), [(-math.inf, math.nan), (-1e9, 0.0)])
def test_a_query_that_sees_no_key(fill: float, expected: float) -> None:
    if math.isnan(expected) and not on_cpu():
        pytest.skip("MLX's kernel decides what such a row is on a GPU")
    mask = np.zeros((5, 7), np.uint8)
    mask[2] = 1
    q, k, v = (lazy(*shape, seed=i) for i, shape in enumerate(SHAPES))
    found = attended(q, k, v, LazyTensor.new(mask), fill).numpy()
    with features.disabled("rewrite"):
        plain = attended(q, k, v, LazyTensor.new(mask), fill).numpy()
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-5)
    if math.isnan(expected):
        assert np.isnan(found[:, :, 2]).all()
    else:  # every key alike
        mean = np.repeat(v.numpy().mean(axis=2), 2, axis=1)
        np.testing.assert_allclose(found[:, :, 2], mean, rtol=0, atol=1e-6)


@pytest.mark.skipif(not on_cpu(), reason="MLX's kernel decides what such a row is on a GPU")
@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize("spelling", ["hidden", "kept", "added", "by name"])
@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16"])
def test_gradients_of_the_other_queries_where_one_sees_no_key(dtype: str, spelling: str, length: int) -> None:
    """With more than 8192 scores the kernel goes by blocks of queries, else MLX differentiates it."""
    hidden = np.triu(np.ones((length, length), np.uint8), 1)
    hidden[1] = 1
    tensors = [tensor(2, 4, length, 6, seed=i, dtype=dtype) for i in range(3)]

    def loss(q: Any, k: Any, v: Any) -> Any:
        scores = q @ k.t() * 0.5
        if spelling == "hidden":
            scores = filled(scores, LazyTensor.new(hidden), -math.inf)
        elif spelling == "added":
            scores = scores + LazyTensor.new(np.where(hidden == 1, -np.inf, 0)).to_dtype(dtype)
        else:
            below = LazyTensor.new(-math.inf).to_dtype(dtype).broadcast_as(scores.shape)
            scores = LazyTensor.new(1 - hidden).broadcast_as(scores.shape).where_cond(scores, below)
        if spelling == "by name" and features.enabled("rewrite"):
            y = ops.sdpa(q, k, v, LazyTensor.new(1 - hidden), False, 0.5, 1.0)
        else:
            y = scores.softmax(-1) @ v
        return y.narrow(2, 2, length - 2)

    found, plain = (with_gradients(loss, tensors, rewriting)[1:] for rewriting in (True, False))
    for got, want in zip(found, plain):
        # NaN where it is spelled out: of all values, and where it is added of all queries and keys that meet that row.
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_allclose(got, want, rtol=0, atol={"bf16": 0.1}.get(dtype, 2e-5))
    assert np.isfinite(found[0]).all() == np.isfinite(found[1]).all() == (spelling != "added")


def test_what_fills_has_its_gradient() -> None:
    mask = LazyTensor.new(np.triu(np.ones((3, 4), np.uint8), 2))
    fill = Var.from_tensor(Tensor(np.float32(0.25)))

    def loss() -> LazyTensor:
        scores = lazy(1, 2, 3, 4) @ lazy(1, 2, 4, 4, seed=1).t()
        hidden = LazyTensor.from_tensor(fill).broadcast_as(scores.shape)
        y: LazyTensor = mask.broadcast_as(scores.shape).where_cond(hidden, scores).softmax(-1) @ lazy(
            1, 2, 4, 3, seed=2
        )
        return y.sqr().sum_all()

    assert "filled_sdpa" in applied(loss())[0]
    found = loss().backward()[fill].to_scalar()
    with features.disabled("rewrite"):
        expected = loss().backward()[fill].to_scalar()
    assert abs(expected) > 1e-2
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("hides", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_any_integer_but_0_is_a_condition(hides: bool, dtype: Any) -> None:
    condition = np.array([[0, 2, 3, 0], [1, 0, 0, 7], [0, 0, 0, 5]], dtype)

    def attention() -> LazyTensor:
        scores = lazy(1, 2, 3, 4) @ lazy(1, 2, 4, 4, seed=1).t()
        low = LazyTensor.new(-math.inf).broadcast_as(scores.shape)
        mask = LazyTensor.new(condition).broadcast_as(scores.shape)
        chosen = mask.where_cond(low, scores) if hides else mask.where_cond(scores, low)
        y: LazyTensor = chosen.softmax(-1) @ lazy(1, 2, 4, 3, seed=2)
        return y

    assert applied(attention())[0][-1] == "filled_sdpa"
    with features.disabled("rewrite"):
        expected = attention().numpy()
    np.testing.assert_allclose(attention().numpy(), expected, rtol=0, atol=1e-6)


def test_dropout_of_the_weights_prevents_it() -> None:
    q, k, v = lazy(2, 3, 5, 4), lazy(2, 3, 7, 4, seed=1), lazy(2, 3, 7, 4, seed=2)
    y = ops.dropout((q @ k.t()).softmax(-1), 0.25) @ v
    names, reason = applied(y)
    assert names[-1] == "matmul"
    assert "dropout" in names
    assert "the weights go through dropout" in reason


def test_weights_or_scores_that_are_held_stay() -> None:
    q, k, v = lazy(2, 3, 5, 4), lazy(2, 3, 7, 4, seed=1), lazy(2, 3, 7, 4, seed=2)
    scores = q @ k.t()
    y = scores.softmax(-1) @ v
    names, reason = applied(y)
    assert "softmax" in names
    assert "matmul [2, 3, 5, 7] stays: somebody holds its value" in reason
    del scores
    assert applied(y)[0] == ["sdpa"]
    weights = (q @ k.t()).softmax(-1)
    y = weights @ v
    assert "softmax [2, 3, 5, 7] stays: somebody holds its value" in applied(y)[1]


def test_repeated_heads_that_are_held_are_used_as_they_are() -> None:
    q, k, v = lazy(2, 4, 5, 6), lazy(2, 2, 7, 6, seed=1), lazy(2, 2, 7, 6, seed=2)
    many = LazyTensor.cat([k, k], 2).reshape((2, 4, 7, 6))
    y = (q @ many.t()).softmax(-1) @ repeated(v)
    names, _ = applied(y)
    assert "cat" in names
    assert names[-1] == "sdpa"
    expected = (q @ many.t()).softmax(-1).eval().matmul(repeated(v).eval()).numpy()
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-5)


def test_attention_of_repeated_heads_by_name_is_grouped_too() -> None:
    q, k, v = lazy(2, 4, 5, 6), lazy(2, 2, 7, 6, seed=1), lazy(2, 2, 7, 6, seed=2)
    y = ops.sdpa(q, repeated(k), repeated(v), None, True, 0.5)
    assert applied(y)[0] == ["sdpa"]
    np.testing.assert_allclose(y.numpy(), ops.sdpa(q, k, v, None, True, 0.5).numpy(), rtol=0, atol=1e-5)


def test_several_heads_share_their_weights_with_nobody() -> None:
    """Two results of the same scores: the scores are computed once, as recorded."""
    q, k, v = lazy(2, 3, 5, 4), lazy(2, 3, 7, 4, seed=1), lazy(2, 3, 7, 4, seed=2)
    names, reason = applied((q @ k.t()).softmax(-1) @ v, (q @ k.t()).softmax(-1) @ v.sqr())
    assert names.count("softmax") == 1
    assert "softmax [2, 3, 5, 7] stays: 2 operations use its value" in reason


def test_a_softmax_in_float32_of_a_half_is_more_exact() -> None:
    tensors = [
        tensor(*shape, seed=i, dtype="bf16") for i, shape in enumerate(((1, 2, 9, 64), (1, 2, 9, 64), (1, 2, 9, 8)))
    ]

    def attention(q: Any, k: Any, v: Any) -> Any:
        return (q @ k.t()).to_dtype("f32").softmax(-1).to_dtype(q.dtype) @ v

    given = [LazyTensor.from_tensor(x) for x in tensors]
    assert applied(attention(*given))[0] == ["sdpa"]
    exact = attention(*[x.to_dtype("f64").to_dtype("f32") for x in given]).numpy()
    with features.disabled("rewrite"):
        spelled = np.abs(attention(*given).to_dtype("f32").numpy() - exact).max()
    assert np.abs(attention(*given).to_dtype("f32").numpy() - exact).max() < spelled


def test_the_record_refuses_what_does_not_fit() -> None:
    meta = [lazy(*shape)._node.meta for shape in SHAPES]
    mask, number = LazyTensor.new(np.ones((5, 7), np.uint8))._node.meta, lazy(1)._node.meta
    record = FilledSdpa(1.0, False, True)
    assert record.infer(*meta, mask, number).shape == (2, 4, 5, 3)
    with pytest.raises(ValueError, match="takes one number"):
        record.infer(*meta, mask, lazy(2)._node.meta)
    with pytest.raises(TypeError, match="a mask of integers"):
        record.infer(*meta, lazy(5, 7)._node.meta, number)


def copies(x: Any) -> Any:
    """``repeat_kv`` by copies of a new dim."""
    b, kv, s, d = x.dims4()
    return x.unsqueeze(2).repeat((1, 1, 2, 1, 1)).reshape((b, 2 * kv, s, d))


def stacked(x: Any) -> Any:
    b, kv, s, d = x.dims4()
    return LazyTensor.stack([x, x], 2).reshape((b, 2 * kv, s, d))


def joined(x: Any) -> Any:
    b, kv, s, d = x.dims4()
    return LazyTensor.cat([x, x], 2).reshape((b, 2 * kv, s, d)).contiguous()


@pytest.mark.parametrize("repeat", [repeated, copies, stacked, joined])
def test_spelled_softmax_over_heads_repeated_in_every_way(repeat: Callable[[Any], Any]) -> None:
    def attention(q: Any, k: Any, v: Any) -> Any:
        scores = q.matmul(repeat(k).transpose(-2, -1)) * 0.5
        powers = scores.broadcast_sub(scores.max_keepdim(-1)).exp()
        return powers.broadcast_div(powers.sum_keepdim(-1)).matmul(repeat(v))

    tensors = [tensor(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    assert applied(attention(*[LazyTensor.from_tensor(x) for x in tensors]))[0] == ["sdpa"]
    found, expected = (with_gradients(attention, tensors, rewriting) for rewriting in (True, False))
    for got, want in zip(found, expected):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_heads_repeated_in_another_order_are_not_grouped() -> None:
    q, k, v = lazy(2, 4, 5, 6), lazy(2, 2, 7, 6, seed=1), lazy(2, 2, 7, 6, seed=2)
    y = (q @ LazyTensor.cat([k, k], 1).t()).softmax(-1) @ LazyTensor.cat([v, v], 1)
    assert applied(y)[0] == ["cat", "cat", "sdpa"]

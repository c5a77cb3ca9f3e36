"""Rotary embeddings that are spelled out: tables of many positions, shared tables, parts of a head, what is held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import LazyTensor, Tensor, Var, features
from metal_candle.nn import rotary_emb

import numpy as np
import pytest
from rewriting import applied

SHAPE = (2, 3, 5, 8)


def tensor(*shape: int, seed: int = 0, dtype: str = "f32") -> Tensor:
    return Tensor(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)).to_dtype(dtype)


def lazy(*shape: int, seed: int = 0, dtype: str = "f32") -> LazyTensor:
    return LazyTensor.from_tensor(tensor(*shape, seed=seed, dtype=dtype))


def turned(x: Any) -> Any:
    half = x.dim(-1) // 2
    return LazyTensor.cat([-x[..., half:], x[..., :half]], -1)


def spelled(x: Any, cos: Any, sin: Any) -> Any:
    return x * LazyTensor.cat([cos, cos], -1) + turned(x) * LazyTensor.cat([sin, sin], -1)


def halves(x: Any, cos: Any, sin: Any) -> Any:
    a, b = x.chunk(2, -1)
    return LazyTensor.cat([a * cos - b * sin, a * sin + b * cos], -1)


def neighbours(x: Any, cos: Any, sin: Any) -> Any:
    a, b = x[..., ::2], x[..., 1::2]
    return LazyTensor.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten_from(-2)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(("function", "name"), [(spelled, "rope"), (halves, "rope"), (neighbours, "rope_interleaved")])
def test_values_and_gradients(function: Callable[..., Any], name: str, dtype: str) -> None:
    tensors = [tensor(*shape, seed=i, dtype=dtype) for i, shape in enumerate((SHAPE, (5, 4), (5, 4)))]
    assert applied(function(*[LazyTensor.from_tensor(x) for x in tensors]))[0] == [name]

    def run(given: list[Tensor]) -> list[np.ndarray[Any, Any]]:
        variables = [Var.from_tensor(x) for x in given]
        y = function(*[LazyTensor.from_tensor(variable) for variable in variables])
        grads = y.sqr().sum_all().backward()
        return [x.to_dtype("f64").numpy() for x in (y.eval(), *[grads[variable] for variable in variables])]

    found = run(tensors)
    with features.disabled("rewrite"):
        expected = run([x.to_dtype("f64") for x in tensors])
    # The tables' gradients are sums over 6 rows of values of up to 2, rounded at each step of a half.
    tolerance = {"f32": 1e-5, "bf16": 4e-2, "f16": 5e-3}[dtype]
    for got, want in zip(found, expected):
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


def test_tables_that_queries_and_keys_share() -> None:
    cos, sin = lazy(9, 4, seed=1), lazy(9, 4, seed=2)
    wide_cos, wide_sin = (LazyTensor.cat([x, x], -1).narrow(0, 2, 5).unsqueeze(0).unsqueeze(0) for x in (cos, sin))
    q, k = lazy(*SHAPE), lazy(2, 1, 5, 8, seed=3)
    both = [x.broadcast_mul(wide_cos) + turned(x).broadcast_mul(wide_sin) for x in (q, k)]
    del wide_cos, wide_sin
    names, _ = applied(*both)
    assert names.count("rope") == 2
    assert "cat" not in names
    expected = rotary_emb.rope(q, cos.narrow(0, 2, 5).contiguous(), sin.narrow(0, 2, 5).contiguous())
    np.testing.assert_array_equal(both[0].numpy(), expected.numpy())


def test_cosines_of_repeated_angles_are_computed_once() -> None:
    angles = lazy(5, 4, seed=1)
    twice = LazyTensor.cat([angles, angles], -1)
    cos, sin = twice.cos(), twice.sin()
    both = [x * cos + turned(x) * sin for x in (lazy(*SHAPE), lazy(*SHAPE, seed=3))]
    del twice, cos, sin
    names, _ = applied(*both)
    assert (names.count("rope"), names.count("cos"), names.count("sin")) == (2, 1, 1)
    with features.disabled("rewrite"):
        angles_cos, angles_sin = angles.cos(), angles.sin()
        expected = halves(lazy(*SHAPE), angles_cos, angles_sin).numpy()
    np.testing.assert_allclose(both[0].numpy(), expected, rtol=0, atol=1e-6)


def test_part_of_a_head() -> None:
    x, cos, sin = lazy(2, 3, 5, 10), lazy(5, 4, seed=1), lazy(5, 4, seed=2)
    y = LazyTensor.cat([spelled(x[..., :8], cos, sin), x[..., 8:]], -1)
    assert applied(y)[0].count("rope") == 1
    with features.disabled("rewrite"):
        expected = LazyTensor.cat([halves(x[..., :8], cos, sin), x[..., 8:]], -1).numpy()
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-6)


def test_columns_of_another_order_do_not_repeat() -> None:
    """A reversed row of equal halves, and rows picked along the last dim, are not taken for the table itself."""
    x, table = lazy(*SHAPE), lazy(5, 4, seed=1)
    twice = LazyTensor.cat([table, table], -1)
    for changed in (twice[:, ::-1], twice.index_select(LazyTensor.new([0, 1, 2, 3, 5, 4, 6, 7]), 1)):
        y = x * changed + turned(x) * changed
        names, reason = applied(y)
        assert "rope" not in names
        assert "is not known to repeat its first half" in reason


def test_a_square_table_whose_row_was_picked() -> None:
    """A slice that drops the last dim keeps its size here, but no row."""
    x, table = lazy(3, 1, 8), lazy(8, 4, seed=1)
    column = LazyTensor.cat([table, table], -1)[:, 2]
    y = x * column + turned(x) * column
    assert "rope" not in applied(y)[0]
    with features.disabled("rewrite"):
        expected = (x * column + turned(x) * column).numpy()
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-6)


def test_what_is_held_stays() -> None:
    x, cos, sin = lazy(*SHAPE), lazy(5, 4, seed=1), lazy(5, 4, seed=2)
    rotated = turned(x)
    y = x * LazyTensor.cat([cos, cos], -1) + rotated * LazyTensor.cat([sin, sin], -1)
    names, reason = applied(y)
    assert "rope" not in names
    assert "cat [2, 3, 5, 8] stays: somebody holds its value" in reason
    del rotated
    assert applied(y)[0] == ["rope"]

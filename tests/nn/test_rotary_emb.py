"""Rotary embeddings by tables: values, gradients, tables longer than the sequence, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var, error, nn
from metal_candle.nn import rotary_emb

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from checking import assert_slopes, check, check_dtypes, normal
from tolerance import VALUE, Tolerance, assert_near

BASE = 10_000.0
FUSED = ("rope", "rope_i", "rope_thd")
SLOW = ("rope_slow", "rope_i_slow")


def tables(length: int, width: int, first: int = 0) -> tuple[Any, Any]:
    """Cosines and sines of the positions from ``first`` on, ``(length, width / 2)`` in float64."""
    angles = np.outer(np.arange(first, first + length), BASE ** (-np.arange(0, width, 2) / width))
    return np.cos(angles), np.sin(angles)


def by_hand(name: str, xs: Any, cos: Any, sin: Any) -> Any:
    """Each pair as a complex number, times cos + i sin."""
    if name == "rope_thd":
        return by_hand("rope", np.swapaxes(xs, 1, 2), cos, sin).swapaxes(1, 2)
    t, half = xs.shape[2], xs.shape[3] // 2
    turn = cos[..., :t, :] + 1j * sin[..., :t, :]
    turn = turn[:, None] if turn.ndim == 3 else turn
    if name.startswith("rope_i"):
        turned = (xs[..., ::2] + 1j * xs[..., 1::2]) * turn
        return np.stack([turned.real, turned.imag], -1).reshape(xs.shape)
    turned = (xs[..., :half] + 1j * xs[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], -1)


def shape_of(name: str, b: int, h: int, t: int, d: int) -> tuple[int, int, int, int]:
    return (b, t, h, d) if name == "rope_thd" else (b, h, t, d)


SIZES = [(2, 3, 5, 8), (1, 1, 1, 2), (2, 1, 7, 6), (1, 2, 0, 4), (0, 2, 3, 4), (1, 4, 33, 64)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [*FUSED, *SLOW])
def test_values(name: str, size: tuple[int, int, int, int]) -> None:
    cos, sin = tables(size[2], size[3])
    arrays = (normal(*shape_of(name, *size)), cos, sin)
    check_dtypes(getattr(rotary_emb, name), arrays, lambda *each: by_hand(name, *each))


@pytest.mark.parametrize("name", [*FUSED, *SLOW])
def test_of_longer_tables_the_first_rows_count(name: str) -> None:
    xs, (cos, sin) = normal(*shape_of(name, 2, 3, 5, 8)), [table.astype(np.float32) for table in tables(9, 8)]
    want = by_hand(name, xs, cos[:5], sin[:5])
    check(getattr(rotary_emb, name), (xs, cos, sin), want)
    check(getattr(rotary_emb, name), (xs, cos[:5], sin), want)  # each of a length of its own, as in candle


@pytest.mark.parametrize("name", FUSED)
def test_tables_for_each_of_the_batch(name: str) -> None:
    both = [tables(9, 8, first) for first in (0, 17)]
    cos, sin = (np.stack(parts) for parts in zip(*both))
    xs = normal(*shape_of(name, 2, 3, 5, 8))
    check_dtypes(getattr(rotary_emb, name), (xs, cos, sin), lambda *each: by_hand(name, *each))
    for i, (one_cos, one_sin) in enumerate(both):
        whole = getattr(rotary_emb, name)(*(Tensor.new(array.astype(np.float32)) for array in (xs, cos, sin)))
        alone = getattr(rotary_emb, name)(
            *(Tensor.new(array.astype(np.float32)) for array in (xs[i : i + 1], one_cos, one_sin))
        )
        np.testing.assert_array_equal(whole.numpy()[i : i + 1], alone.numpy())


def test_the_three_forms_agree() -> None:
    """As in candle's own tests: neighbours are halves in another order, heads and positions may change places."""
    xs, cos, sin = (Tensor.new(array.astype(np.float32)) for array in (normal(2, 3, 5, 8), *tables(5, 8)))
    halves = rotary_emb.rope(xs, cos, sin).numpy()
    paired = xs.reshape((2, 3, 5, 2, 4)).transpose(3, 4).reshape((2, 3, 5, 8))
    neighbours = rotary_emb.rope_i(paired, cos, sin).reshape((2, 3, 5, 4, 2)).transpose(3, 4).reshape((2, 3, 5, 8))
    np.testing.assert_array_equal(neighbours.numpy(), halves)
    np.testing.assert_array_equal(rotary_emb.rope_thd(xs.transpose(1, 2), cos, sin).transpose(1, 2).numpy(), halves)
    # The two products of an element may be fused into one rounding.
    assert_near(rotary_emb.rope_slow(xs, cos, sin).numpy(), halves, VALUE[DType.F32])


def test_the_slow_forms_are_recognised() -> None:
    """A lazy spelling runs as the fused operation."""
    xs, cos, sin = (LazyTensor.new(array.astype(np.float32)) for array in (normal(2, 3, 5, 8), *tables(5, 8)))
    assert "rotary_rotate_half" in str(rotary_emb.rope_slow(xs, cos, sin).explain())
    assert "rotary_pairs" in str(rotary_emb.rope_i_slow(xs, cos, sin).explain())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("offset", [0, 1, 40])
def test_is_what_mlx_computes_from_positions(interleaved: bool, offset: int) -> None:
    xs, (cos, sin) = normal(2, 3, 5, 8), [table.astype(np.float32) for table in tables(5, 8, offset)]
    function = rotary_emb.rope_i if interleaved else rotary_emb.rope
    fast = mx.fast.rope(mx.array(xs), 8, traditional=interleaved, base=BASE, scale=1.0, offset=offset)
    layer = mlx.nn.RoPE(8, traditional=interleaved, base=BASE)(mx.array(xs), offset=offset)
    for theirs in (fast, layer):
        # MLX makes its angles in float32: at position 45 they are off by up to 45 · 2^-23 = 5e-6.
        check(function, (xs, cos, sin), np.array(theirs), tolerance=Tolerance(2e-5, 2e-5))


def test_is_rotate_half_of_hugging_face() -> None:
    """x · cos + rotate_half(x) · sin, with tables that hold each angle twice."""
    xs, (cos, sin) = normal(2, 3, 5, 8), [table.astype(np.float32) for table in tables(5, 8)]
    half = np.concatenate([-xs[..., 4:], xs[..., :4]], -1)
    want = xs * np.concatenate([cos, cos], -1) + half * np.concatenate([sin, sin], -1)
    check(rotary_emb.rope, (xs, cos, sin), want)


def test_scores_depend_on_the_distance_only() -> None:
    q, k = (Tensor.new(normal(1, 1, 1, 16, seed=seed)) for seed in (1, 2))

    def score(name: str, at: int, other: int) -> float:
        function = getattr(rotary_emb, name)
        turned = [
            function(x, *(Tensor.new(table.astype(np.float32)) for table in tables(1, 16, position)))
            for x, position in ((q, at), (k, other))
        ]
        return float((turned[0] * turned[1]).sum_all().to_scalar())

    for name in ("rope", "rope_i"):
        assert score(name, 3, 10) == pytest.approx(score(name, 103, 110), rel=1e-4, abs=1e-4)
        assert score(name, 3, 10) != pytest.approx(score(name, 3, 11), rel=1e-3)


@pytest.mark.parametrize("name", [*FUSED, *SLOW])
def test_gradients_of_the_tensor_and_of_both_tables(name: str) -> None:
    assert_slopes(
        getattr(rotary_emb, name), normal(*shape_of(name, 2, 2, 3, 4)), *(normal(4, 2, seed=s) for s in (1, 2))
    )


@pytest.mark.parametrize("name", FUSED)
def test_gradients_of_tables_for_each_of_the_batch(name: str) -> None:
    batched = [normal(2, 4, 2, seed=seed) for seed in (1, 2)]
    assert_slopes(getattr(rotary_emb, name), normal(*shape_of(name, 2, 2, 3, 4)), *batched)


def test_strided_tensors_and_variables() -> None:
    xs, (cos, sin) = normal(2, 5, 3, 8), [table.astype(np.float32) for table in tables(5, 8)]
    want = by_hand("rope", xs.swapaxes(1, 2), cos, sin)
    check(lambda x, c, s: rotary_emb.rope(x.transpose(1, 2), c.t(), s.t()), (xs, cos.T, sin.T), want)
    variable = Var.new(cos)
    got = rotary_emb.rope(LazyTensor.new(xs.swapaxes(1, 2)), variable, Tensor.new(sin))
    assert isinstance(got, LazyTensor)
    assert got.sum_all().backward().get(variable) is not None
    assert not hasattr(nn.ops, "rope")  # candle has it here


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
def test_refuses(kind: Any) -> None:
    def raises(
        kind_of: type[Exception], text: str, function: Callable[..., Any], *shapes: Any, dtype: Any = "f32"
    ) -> None:
        xs, cos, sin = (kind.zeros(shape, dtype if i else "f32") for i, shape in enumerate(shapes))
        with pytest.raises(kind_of) as caught:
            function(xs, cos, sin)
        assert str(caught.value) == text

    takes = "xs of 4 dims, t and d the last two, d even, and tables (T, d/2) with T >= t"
    mismatch = error.ShapeMismatchBinaryOpError
    for name in ("rope", "rope_i"):
        function = getattr(rotary_emb, name)
        got = f"{name}: got shapes"
        raises(
            mismatch, f"{got} (1, 4, 3, 8) and (3, 3); takes {takes}, or (b, T, d/2)", function,
            (1, 4, 3, 8), (3, 3), (3, 4),
        )  # fmt: skip
        raises(
            mismatch, f"{got} (1, 4, 3, 8) and (2, 4); takes {takes}, or (b, T, d/2)", function,
            (1, 4, 3, 8), (3, 4), (2, 4),
        )  # fmt: skip
        raises(
            mismatch, f"{got} (1, 4, 3, 7) and (3, 3); takes {takes}, or (b, T, d/2)", function,
            (1, 4, 3, 7), (3, 3), (3, 3),
        )  # fmt: skip
        raises(
            mismatch, f"{got} (2, 4, 3, 8) and (3, 3, 4); takes {takes}, or (b, T, d/2)", function,
            (2, 4, 3, 8), (3, 3, 4), (3, 3, 4),
        )  # fmt: skip
        raises(
            error.UnexpectedNumberOfDimsError, f"{name}: got rank 3, shape (4, 3, 8); takes rank 4", function,
            (4, 3, 8), (3, 4), (3, 4),
        )  # fmt: skip
    raises(
        mismatch, "rope: got shapes (3, 4) and (1, 3, 4); takes cos and sin of one shape", rotary_emb.rope,
        (1, 4, 3, 8), (3, 4), (1, 3, 4),
    )  # fmt: skip
    raises(
        mismatch, f"rope_slow: got shapes (1, 4, 3, 8) and (1, 3, 4); takes {takes}", rotary_emb.rope_slow,
        (1, 4, 3, 8), (1, 3, 4), (1, 3, 4),
    )  # fmt: skip
    raises(
        error.UnexpectedNumberOfDimsError, "rope_thd: got rank 1, shape (8,); takes rank 4", rotary_emb.rope_thd,
        (8,), (3, 4), (3, 4),
    )  # fmt: skip
    raises(
        error.DTypeMismatchError, "rope: dtypes differ, lhs f32, rhs f16; convert one with to_dtype", rotary_emb.rope,
        (1, 4, 3, 8), (3, 4), (3, 4), dtype="f16",
    )  # fmt: skip

"""Numbers that are folded: the odd values, integers, what is held, and the powers."""

from __future__ import annotations

from metal_candle import DType, LazyTensor, Tensor, Var, features

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import lowered

FLOATS = [DType.F32, DType.F16, DType.BF16, DType.F64]
EPSILON = {DType.F32: 2.0**-23, DType.F16: 2.0**-10, DType.BF16: 2.0**-7, DType.F64: 2.0**-52}
ODD = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -2.5, 1e4, 6e4, 1e-4, 3e-5, 1e-30, -1e30], np.float64)


def lazy(values: np.ndarray, dtype: DType) -> LazyTensor:
    return LazyTensor.from_tensor(Tensor.new(values, dtype="f64").to_dtype(dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 1.0,
        lambda x: x + 0.0,
        lambda x: x - 0.0,
        lambda x: x / 1.0,
        lambda x: -(-x),  # noqa: B002
        lambda x: x.powf(1.0),
        lambda x: x.powf(2.0),
        lambda x: x.abs().powf(0.5),
        lambda x: (x.sqr().sum_keepdim(0) + 1.0).powf(0.5),
        lambda x: x.powf(0.5),
        lambda x: x * 0.0 * 2.0,
        lambda x: x * float("inf") * 2.0,
        lambda x: x * 2.0 * float("nan"),
    ],
)
def test_odd_values_stay_what_they_are(function: object, dtype: DType) -> None:
    found = function(lazy(ODD, dtype)).eval().to_dtype("f64").numpy()  # type: ignore[operator]
    with features.disabled("rewrite"):
        expected = function(lazy(ODD, dtype)).eval().to_dtype("f64").numpy()  # type: ignore[operator]
    np.testing.assert_allclose(found, expected, rtol=2 * EPSILON[dtype], atol=0)
    np.testing.assert_array_equal(np.signbit(found[~np.isnan(found)]), np.signbit(expected[~np.isnan(expected)]))


@given(
    st.lists(st.floats(-9, 9).filter(lambda f: abs(f) > 0.01), min_size=2, max_size=5),
    st.lists(st.sampled_from(["mul", "div", "mul_scalar", "affine"]), min_size=5, max_size=5),
    st.sampled_from(FLOATS),
)
@settings(max_examples=100, deadline=None)
def test_a_row_of_factors_is_one_factor(factors: list[float], kinds: list[str], dtype: DType) -> None:
    x = np.linspace(-1, 1, 7)

    def row(t: LazyTensor) -> LazyTensor:
        for kind, factor in zip(kinds, factors):
            t = {
                "mul": lambda t, f: t * f,
                "div": lambda t, f: t / f,
                "mul_scalar": lambda t, f: t.mul_scalar(f),
                "affine": lambda t, f: t.affine(f, 0.0),
            }[kind](t, factor)
        return t

    y = row(lazy(x, dtype))
    if 2.0**-13 < abs(np.prod([1 / f if kind == "div" else f for kind, f in zip(kinds, factors)])) < 2.0**13:
        assert len(lowered(y)) <= len(factors)
    exact = row(lazy(lazy(x, dtype).eval().to_dtype("f64").numpy(), DType.F64)).eval().numpy()
    # A rounding for the number and one for the product, and where nothing was folded for each.
    allowed = 2 * (len(factors) + 1) * EPSILON[dtype] * np.abs(exact) + (2.0**-20 if dtype is DType.F16 else 1e-30)
    assert (np.abs(y.eval().to_dtype("f64").numpy() - exact) <= allowed).all()


def test_what_underflows_between_no_longer_does() -> None:
    x = lazy(np.array([1e-4, 2.0]), DType.F16)
    with features.disabled("rewrite"):
        steps = (x * 1e-4 * 1e4).eval().to_dtype("f32").numpy()
    folded = (x * 1e-4 * 1e4).eval().to_dtype("f32").numpy()
    assert steps[0] == 0.0
    np.testing.assert_allclose(folded, [1e-4, 2.0], rtol=2e-3)


@pytest.mark.parametrize("dtype", [DType.U8, DType.I32, DType.I64], ids=str)
def test_integers_are_computed_step_by_step(dtype: DType) -> None:
    def chains() -> list[LazyTensor]:
        x = LazyTensor.new(np.array([0, 1, 7, 100, 200])).to_dtype(dtype)
        return [
            x.affine(3.0, 0.0).affine(0.5, 0.0),
            x.affine(0.5, 0.0).affine(2.0, 1.0),
            x.affine(100.0, 0.0).affine(3.0, 7.0),
        ]

    for tensor in chains():
        assert lowered(tensor)[-2:] == ["affine", "affine"]
    found = [tensor.eval().numpy() for tensor in chains()]
    with features.disabled("rewrite"):
        np.testing.assert_array_equal(found, [tensor.eval().numpy() for tensor in chains()])
    # In an assert the steps would be held.
    same = LazyTensor.new(np.array([0, 1, 200])).to_dtype(dtype).affine(1.0, 0.0).neg().neg()
    assert lowered(same) in ([], ["to_dtype"])


def test_a_held_factor_is_kept_and_the_next_one_starts_from_it() -> None:
    x = lazy(np.array([1.0, 3.0]), DType.F32)
    half = x * 0.5
    y = half * 4.0
    assert lowered(y) == ["affine", "affine"]
    np.testing.assert_array_equal(y.eval().numpy(), [2.0, 6.0])
    assert half.is_evaluated()


def test_a_factor_of_zero_ends_the_gradient_as_before() -> None:
    v = Var.from_tensor(Tensor(np.array([1.0, 2.0], np.float32)))
    x = LazyTensor.from_tensor(v)
    assert (x * 3.0 * 0.0).sum_all().backward().get(v) is None
    assert (x * 0.0 * 3.0).sum_all().backward().get(v) is None
    np.testing.assert_array_equal((x * 3.0 * 1.0 * -2.0).sum_all().backward()[v].numpy(), [-6.0, -6.0])


def test_an_alias_of_a_held_value_is_a_value_of_its_own() -> None:
    v = Var.from_tensor(Tensor(np.array([1.0, 2.0], np.float32)))
    x = LazyTensor.from_tensor(v).exp()
    same = x * 1.0
    grads = (same * x).sum_all().backward()
    np.testing.assert_allclose(grads[v].numpy(), 2 * np.exp([2.0, 4.0]), rtol=1e-6)
    np.testing.assert_array_equal(same.eval().numpy(), x.eval().numpy())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_powers_have_the_gradient_of_the_power(power: float, dtype: DType) -> None:
    values = np.array([0.0, 0.25, 1.5, 100.0])

    def gradient() -> np.ndarray:
        v = Var.from_tensor(Tensor.new(values, dtype="f64").to_dtype(dtype))
        return LazyTensor.from_tensor(v).abs().powf(power).sum_all().backward()[v].to_dtype("f64").numpy()

    found = gradient()
    with features.disabled("rewrite"):
        np.testing.assert_allclose(found, gradient(), rtol=4 * EPSILON[dtype])

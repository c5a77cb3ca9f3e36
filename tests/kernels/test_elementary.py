"""exp, sigmoid and silu against NumPy in float64, over all of float32."""

from __future__ import annotations

from metal_candle.kernels.elementary import SMALL, exp, exp_up_to_zero, sigmoid, silu
from metal_candle.kernels.kernel import Kernel, on_cpu
from metal_candle.kernels.slices import SLICE, sliced

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

# What the package promises of every shortcut in its numbers.
RELATIVE = 2e-6
SMALLEST = np.finfo(np.float32).smallest_normal
cpu_only = pytest.mark.skipif(not on_cpu(), reason="the GPU has exp in hardware; these are the CPU's")


def padded(values: np.ndarray) -> mx.array:
    """Enough elements for the fast variant, the values in front."""
    return mx.concatenate([mx.array(values), mx.zeros(SMALL)])


def of(kernel: Kernel, values: np.ndarray) -> np.ndarray:
    x = padded(values)
    assert kernel.choose(x).name == "rational"
    return np.array(kernel(x))[: values.size]


def assert_close(got: np.ndarray, want: np.ndarray, smallest: float = SMALLEST) -> None:
    """Within the promise where the value is a normal number; below it, no further off than that number."""
    with np.errstate(over="ignore"):
        rounded = want.astype(np.float32)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(got[~finite], rounded[~finite])
    np.testing.assert_allclose(got[finite], want[finite], rtol=RELATIVE, atol=smallest * RELATIVE + 2e-45)


@cpu_only
@settings(max_examples=300, deadline=None)
@given(hnp.arrays(np.float32, 64, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
def test_exp_over_all_of_float32(values: np.ndarray) -> None:
    # Next to the largest number rounding decides between it and infinity.
    values = values[~((values > 88.7228) & (values < 88.7229))]
    with np.errstate(over="ignore"):
        assert_close(of(exp, values), np.exp(values.astype(np.float64)))


@cpu_only
@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, 64, elements=st.floats(-104, 89, width=32)))
def test_exp_where_it_is_neither_zero_nor_infinite(values: np.ndarray) -> None:
    values = values[~((values > 88.7228) & (values < 88.7229))]
    assert_close(of(exp, values), np.exp(values.astype(np.float64)))


@cpu_only
def test_exp_is_within_the_promise_on_a_fine_grid() -> None:
    values = np.linspace(-87.3, 88.7, 2_000_000, dtype=np.float32)
    error = np.abs(of(exp, values) / np.exp(values.astype(np.float64)) - 1)
    assert error.max() < 1.5e-6


@cpu_only
@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, 64, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
def test_sigmoid_over_all_of_float32(values: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        want = 1 / (1 + np.exp(-values.astype(np.float64)))
    got = of(sigmoid, values)
    # Documented: below 3e-39, less than the smallest normal number, it is 0.
    tiny = want < SMALLEST
    assert np.all(got[tiny] <= SMALLEST)
    assert_close(got[~tiny], want[~tiny])


@cpu_only
def test_silu_on_a_fine_grid() -> None:
    values = np.linspace(-80, 80, 1_000_000, dtype=np.float32)
    values = values[values != 0]
    wide = values.astype(np.float64)
    assert np.abs(of(silu, values) / (wide / (1 + np.exp(-wide))) - 1).max() < RELATIVE


@cpu_only
def test_the_power_of_a_row_below_its_maximum() -> None:
    values = -np.abs(np.linspace(0, 120, 1_000_000, dtype=np.float32))
    want = np.exp(values.astype(np.float64))
    got = np.array(exp_up_to_zero(mx.array(values)))
    np.testing.assert_allclose(got, want, rtol=0, atol=6e-7)
    near = values > -20
    np.testing.assert_allclose(got[near], want[near], rtol=RELATIVE)
    assert np.all(got[values < -88] == 0)
    assert np.isnan(np.array(exp_up_to_zero(mx.array([np.nan])))).all()
    assert np.array(exp_up_to_zero(mx.array([-np.inf, 0.0]))).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("kernel", [exp, sigmoid, silu], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (5, 123), (2, 3, SLICE // 3)])
def test_shapes(kernel: Kernel, shape: tuple[int, ...]) -> None:
    x = mx.random.normal(shape, key=mx.random.key(0))
    got, want = kernel(x), kernel.reference(x)
    assert got.shape == shape
    np.testing.assert_allclose(np.array(got), np.array(want), rtol=RELATIVE, atol=1e-30)


@pytest.mark.parametrize("kernel", [exp, sigmoid, silu], ids=lambda kernel: kernel.name)
def test_not_contiguous(kernel: Kernel) -> None:
    x = mx.random.normal((300, 200), key=mx.random.key(1))
    np.testing.assert_allclose(np.array(kernel(x.T[::2])), np.array(kernel.reference(x.T[::2])), rtol=RELATIVE)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("kernel", [exp, sigmoid, silu], ids=lambda kernel: kernel.name)
def test_halves_are_rounded_once(kernel: Kernel, dtype: mx.Dtype) -> None:
    x = mx.random.normal((3 * SMALL,), key=mx.random.key(2)).astype(dtype)
    got = kernel(x)
    assert got.dtype == dtype
    want = np.array(kernel.reference(x.astype(mx.float32)))
    half_a_unit = 2.0**-11 if dtype == mx.float16 else 2.0**-8
    tolerance = half_a_unit * 1.01 if on_cpu() else 2 * half_a_unit
    # Below 6e-5 a float16 has fewer digits.
    np.testing.assert_allclose(np.array(got.astype(mx.float32)), want, rtol=tolerance, atol=3e-8)


def test_slices_give_what_the_whole_gives() -> None:
    a, b = (mx.random.normal((7, SLICE // 2 + 1), key=mx.random.key(i)) for i in range(2))
    total, product = sliced(lambda x, y: (x + y, x * y), a, b)
    assert mx.array_equal(total, a + b)
    assert mx.array_equal(product, a * b)

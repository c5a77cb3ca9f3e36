"""x · Φ(x) and its gradient against Python's erfc in float64."""

from __future__ import annotations

import math
from typing import Any

from metal_candle import Device, DType, LazyTensor, Tensor, Var
from metal_candle.kernels.elementary import SMALL
from metal_candle.kernels.gelu_erf import gelu_erf
from metal_candle.kernels.kernel import on_cpu
from metal_candle.kernels.slices import SLICE

import mlx.core as mx
import numpy as np
import pytest

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])
# Of the polynomials 9e-8, the rest of roundings; torch 2.12's float32 is off by up to 3.7e-7.
NEAR = 4e-7
NEAR_GRADIENT = 8e-7
cpu_only = pytest.mark.skipif(not on_cpu(), reason="the GPU has erf in hardware; this is the CPU's")


def everywhere() -> Any:
    sizes = np.concatenate([np.linspace(0, 12, 40_001), np.logspace(-45, 4, 5001), [1e6, 3e38]])
    return np.concatenate([sizes, -sizes]).astype(np.float32)


def normal(x: Any) -> Any:
    return 0.5 * _erfc(-x / math.sqrt(2))


def slope(x: Any) -> Any:
    with np.errstate(over="ignore"):
        return normal(x) + x * np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)


@cpu_only
@KINDS
def test_over_all_of_float32(kind: Any) -> None:
    values = everywhere()
    wide = values.astype(np.float64)
    assert gelu_erf.choose(mx.array(values)).name == "rational"
    got = kind.new(values, Device.Cpu).gelu_erf().numpy()
    # Where x is positive relatively too, from the largest to the smallest normal number.
    np.testing.assert_allclose(got, wide * normal(wide), rtol=1e-7, atol=NEAR)
    some = values > 1e-37
    np.testing.assert_allclose(got[some], (wide * normal(wide))[some], rtol=2e-6)


@cpu_only
def test_gradient_over_all_of_float32() -> None:
    values = everywhere()
    w = Var.new(values, Device.Cpu)
    factor = np.linspace(-2, 2, values.size).astype(np.float32)
    got = (w.gelu_erf() * Tensor.new(factor, Device.Cpu)).sum_all().backward()[w].numpy()
    np.testing.assert_allclose(got, slope(values.astype(np.float64)) * factor, rtol=1e-6, atol=2 * NEAR_GRADIENT)


@cpu_only
def test_ends() -> None:
    x = mx.concatenate([mx.array([math.inf, -math.inf, math.nan, 0.0]), mx.zeros(SMALL)])
    np.testing.assert_allclose(np.array(gelu_erf(x))[:4], [math.inf, 0, math.nan, 0], atol=1e-30)
    (gradient,) = gelu_erf.vjp(mx.ones_like(x), (x,), None, (True,))
    assert gradient is not None
    # Of NaN the gradient is NaN as well.
    np.testing.assert_allclose(np.array(gradient)[:4], [1, 0, math.nan, 0.5], atol=NEAR_GRADIENT)


@cpu_only
@pytest.mark.parametrize(("dtype", "half"), [(DType.F16, 2.0**-11), (DType.BF16, 2.0**-8)], ids=str)
def test_halves_are_rounded_once(dtype: DType, half: float) -> None:
    x = Tensor.new(np.clip(everywhere(), -1e4, 1e4), Device.Cpu).to_dtype(dtype)
    wide = x.to_dtype(DType.F64).numpy()
    assert gelu_erf.choose(x.mlx()).name == "rational in float32"
    got = x.gelu_erf()
    assert got.dtype is dtype
    want = wide * normal(wide)
    np.testing.assert_allclose(got.to_dtype(DType.F64).numpy(), want, rtol=half * 1.01, atol=NEAR)


@KINDS
def test_float64_is_exact(kind: Any) -> None:
    values = np.linspace(-8, 8, SMALL + 1)
    x = Var.new(values, Device.Cpu)
    got = kind.new(values, Device.Cpu).gelu_erf()
    assert got.dtype is DType.F64
    np.testing.assert_allclose(got.numpy(), values * normal(values), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(x.gelu_erf().sum_all().backward()[x].numpy(), slope(values), rtol=1e-12, atol=1e-13)


@cpu_only
def test_slices_are_those_of_the_whole() -> None:
    x = mx.random.normal((3, SLICE + 5), key=mx.random.key(1)) * 3
    rows = [gelu_erf(row) for row in x]
    np.testing.assert_array_equal(np.array(gelu_erf(x)), np.array(mx.stack(rows)))
    of_rows = [gelu_erf.vjp(row, (row,), None, (True,))[0] for row in x]
    (of_all,) = gelu_erf.vjp(x, (x,), None, (True,))
    assert of_all is not None
    np.testing.assert_array_equal(np.array(of_all), np.array(mx.stack([row for row in of_rows if row is not None])))


@cpu_only
@pytest.mark.parametrize(
    ("count", "line"),
    [(SMALL, "gelu_erf [(4096,)]: rational, float32 on the CPU"), (5, "gelu_erf [(5,)]: by erf, fewer than 4096")],
)
def test_explain_says_which_form_is_taken(count: int, line: str) -> None:
    assert line in str(LazyTensor.ones((count,), "f32", Device.Cpu).gelu_erf().explain())

"""The error function against Python's, over all of float32."""

from __future__ import annotations

import math
from typing import Any

from metal_candle import Device, DType, LazyTensor, Tensor, Var

import numpy as np
import pytest

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
_erf = np.vectorize(math.erf, otypes=[np.float64])
# Six units in the last place: those of some twenty roundings, of which each has half a unit.
NEAR = 4e-7
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


def everywhere() -> Any:
    sizes = np.concatenate([np.linspace(0, 6, 20_001), np.logspace(-45, 0, 5001)])
    return np.concatenate([sizes, -sizes]).astype(np.float32)


@KINDS
@pytest.mark.parametrize("count", [None, 1000, 1])
def test_erf(kind: Any, count: int | None) -> None:
    values = everywhere()[::-1][:count]
    got = kind.new(values, Device.Cpu).erf()
    assert got.dtype is DType.F32
    # Below the normal numbers within the smallest one.
    np.testing.assert_allclose(got.numpy(), _erf(values.astype(np.float64)), rtol=NEAR, atol=SMALLEST)
    assert np.abs(got.numpy()).max() <= 1


@KINDS
def test_more_than_a_slice(kind: Any) -> None:
    values = np.random.default_rng(0).normal(size=(3, 100_001)).astype(np.float32)
    got = kind.new(values, Device.Cpu).erf().numpy()
    np.testing.assert_allclose(got[:, ::50], _erf(values[:, ::50].astype(np.float64)), rtol=NEAR)


@KINDS
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16], ids=str)
def test_ends(kind: Any, dtype: DType) -> None:
    x = kind.new([0.0, -0.0, math.inf, -math.inf, math.nan, 1e4, -1e4], Device.Cpu).to_dtype(dtype)
    got = x.erf().to_dtype(DType.F32).numpy()
    np.testing.assert_array_equal(got, [0.0, -0.0, 1.0, -1.0, math.nan, 1.0, -1.0])
    assert np.signbit(got[:2]).tolist() == [False, True]


@pytest.mark.parametrize(("dtype", "half"), [(DType.F16, 2.0**-11), (DType.BF16, 2.0**-8)], ids=str)
def test_halves_are_rounded_once(dtype: DType, half: float) -> None:
    x = Tensor.new(everywhere(), Device.Cpu).to_dtype(dtype)
    want = _erf(x.to_dtype(DType.F64).numpy())
    # float16 has no smaller numbers than 6e-8.
    np.testing.assert_allclose(x.erf().to_dtype(DType.F64).numpy(), want, rtol=half * 1.01, atol=3.1e-8)


@KINDS
def test_gelu_erf(kind: Any) -> None:
    # Few enough that it is computed by erf; see test_gelu_erf for more.
    values = everywhere()[::13]
    wide = values.astype(np.float64)
    want = 0.5 * wide * (1 + _erf(wide / math.sqrt(2)))
    # Where x is negative 1 + erf cancels: 4e-7 of x/2, down to -5.
    np.testing.assert_allclose(kind.new(values, Device.Cpu).gelu_erf().numpy(), want, rtol=NEAR, atol=1e-6)
    small = np.abs(values) < 0.1
    np.testing.assert_allclose(
        kind.new(values[small], Device.Cpu).gelu_erf().numpy(), want[small], rtol=NEAR, atol=SMALLEST
    )


def test_the_gradient_is_the_density() -> None:
    values = np.array([0.0, 1e-7, -1e-3, 0.4, -2.0, 3.9, 5.0], np.float32)
    w = Var.new(values, Device.Cpu)
    got = w.erf().sum_all().backward()[w].numpy()
    np.testing.assert_allclose(got, 2 / math.sqrt(math.pi) * np.exp(-np.square(values.astype(np.float64))), rtol=1e-5)

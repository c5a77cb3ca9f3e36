"""Sums of many float32 elements against float64, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var
from metal_candle.kernels import accurate_sum

import mlx.core as mx
import numpy as np
import pytest

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
# Of uniform numbers up to 4 million, where the roundings of float32 partly cancel; one after the other misses it by
# ten times. The bound for the worst case is in the module.
NEAR = 1e-6
MANY = 20_000_000


def uniform(*shape: int) -> Any:
    return np.random.default_rng(1).random(shape, dtype=np.float32)


def assert_near(got: Any, want: Any, relative: float = NEAR) -> None:
    values = np.asarray(got.numpy() if isinstance(got, (Tensor, LazyTensor)) else got)
    assert values.shape == np.shape(want)
    np.testing.assert_allclose(values.astype(np.float64), want, rtol=relative)


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=str)
def test_twenty_million_ones(kind: Any, dtype: DType) -> None:
    ones = kind.ones(MANY, dtype, Device.Cpu)
    # The nearest bfloat16 of 2e7 is off by up to 2**-9 of it.
    near = 0.0 if dtype is DType.F32 else 2.0**-8
    assert ones.mean_all().to_scalar() == 1.0
    assert ones.sum_all().to_scalar() == pytest.approx(MANY, rel=near, abs=0)
    assert ones.reshape((2, MANY // 2)).sum(1).tolist() == pytest.approx([MANY // 2] * 2, rel=near, abs=0)
    assert ones.norm().to_scalar() == pytest.approx(MANY**0.5, rel=near or 1e-7)
    assert ones.cumsum(0).max_all().to_scalar() == pytest.approx(MANY, rel=near, abs=0)


@pytest.mark.slow
@KINDS
def test_the_gradient_of_a_broadcast_adds_up_all_places(kind: Any) -> None:
    w = Var(3.0)
    x = LazyTensor.from_tensor(w) if kind is LazyTensor else w
    assert x.broadcast_as(MANY).sum_all().backward()[w].to_scalar() == MANY
    assert (x.broadcast_as((2, MANY // 2)) * 1.0).mean_all().backward()[w].to_scalar() == pytest.approx(1.0, rel=1e-6)


@KINDS
@pytest.mark.parametrize("size", [1_000_000, 2**22])
def test_uniform_numbers(kind: Any, size: int) -> None:
    values = uniform(size)
    x, wide = kind.new(values, Device.Cpu), values.astype(np.float64)
    assert_near(x.sum_all(), wide.sum())
    assert_near(x.mean_all(), wide.mean())
    assert_near(x.var(0), wide.var(ddof=1))
    assert_near(x.norm(), np.linalg.norm(wide))
    assert_near(x.log_sum_exp(0), np.log(np.exp(wide).sum()))
    assert_near(x.dot(x), wide @ wide)
    assert_near(x.cumsum(0), np.cumsum(wide))


SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((2049,), (0,)),
    ((128 * 128 + 1,), (0,)),
    ((1_000_003,), (0,)),
    ((3, 40_007), (1,)),
    ((40_007, 3), (0,)),
    ((40_007, 3), (0, 1)),
    ((5, 4099, 7), (1,)),
    ((61, 5, 67), (0, 2)),
    ((61, 5, 67), (-1, 0)),
    ((9, 9, 9, 9), (0, 1, 2, 3)),
    ((1, 5000, 1), (0, 1)),
    ((0, 5000), (1,)),
    ((5000, 0), (0,)),
    ((5000, 0), (0, 1)),
]


@KINDS
@pytest.mark.parametrize(("shape", "dims"), SHAPES)
def test_all_shapes(kind: Any, shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    values = uniform(*shape)
    x, wide = kind.new(values, Device.Cpu), values.astype(np.float64)
    assert_near(x.sum(dims), wide.sum(dims))
    assert_near(x.sum_keepdim(dims), wide.sum(dims, keepdims=True))
    turned = tuple(reversed(range(len(shape))))
    mirrored = tuple(len(shape) - 1 - dim % len(shape) for dim in dims)
    assert_near(x.permute(turned).sum(mirrored), wide.transpose(turned).sum(mirrored))
    if values.size:
        assert_near(x.mean(dims), wide.mean(dims))
        assert_near(x.mean_keepdim(dims), wide.mean(dims, keepdims=True))
        assert_near(x.log_sum_exp(dims), np.log(np.exp(wide).sum(dims)))
        longest = int(np.argmax(shape))
        assert_near(x.var(longest), wide.var(longest, ddof=1))
        assert_near(x.var_keepdim(longest), wide.var(longest, ddof=1, keepdims=True))
    assert_near(x.cumsum(dims[0]), np.cumsum(wide, dims[0]))


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16], ids=str)
def test_halves_are_added_up_in_float32(dtype: DType) -> None:
    x = Tensor.new(uniform(3, 10_007), Device.Cpu).to_dtype(dtype)
    wide = x.to_dtype(DType.F64).numpy()
    # One rounding to the half at the end.
    half = 2.0**-11 if dtype is DType.F16 else 2.0**-8
    for got, want in [(x.sum(1), wide.sum(1)), (x.mean(1), wide.mean(1)), (x.var(1), wide.var(1, ddof=1))]:
        assert got.dtype is dtype
        assert_near(got.to_dtype(DType.F64), want, half * 1.01)
    # The sum, 1e6, is beyond float16.
    assert Tensor.full(100.0, 10_000, Device.Cpu).to_dtype(dtype).mean_all().to_scalar() == 100.0


def test_integers_wrap_and_float64_has_all_its_digits() -> None:
    assert Tensor.ones(100_000, DType.U8, Device.Cpu).sum_all().to_scalar() == 100_000 % 256
    wide = np.random.default_rng(2).random(100_003)
    assert_near(Tensor.new(wide, Device.Cpu).sum_all(), wide.sum(), 1e-12)


def test_a_row_of_large_or_infinite_numbers() -> None:
    row = Tensor.full(1000.0, 100_000, Device.Cpu)
    assert_near(row.log_sum_exp(0), 1000.0 + np.log(1e5))
    assert Tensor.full(-np.inf, 5000, Device.Cpu).log_sum_exp(0).to_scalar() == -np.inf
    values = uniform(5000)
    for odd in (np.inf, np.nan):
        values[4321] = odd
        x = Tensor.new(values, Device.Cpu)
        for got in (x.sum_all(), x.mean_all(), x.norm(), x.log_sum_exp(0)):
            np.testing.assert_equal(got.to_scalar(), odd)
        sums = x.cumsum(0).numpy()
        assert np.isfinite(sums[:4321]).all()
        np.testing.assert_array_equal(sums[4321:], np.full(679, odd))


CASES: dict[str, Callable[[Any], Any]] = {
    "sum": lambda x: x.sum(1),
    "mean": lambda x: x.mean(1),
    "var": lambda x: x.var(1) * 100.0,
    "norm": lambda x: x.norm(),
    "log_sum_exp": lambda x: x.log_sum_exp(1),
    "cumsum": lambda x: x.cumsum(1) * (1 / 3001),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_compiled(name: str) -> None:
    call, values = CASES[name], uniform(2, 3001)

    def gradient(dtype: DType) -> Any:
        w = Var.new(values, Device.Cpu) if dtype is DType.F32 else Var.new(values.astype(np.float64), Device.Cpu)
        return call(w).sum_all().backward()[w].numpy()

    # The largest gradient of the row measures the error of each.
    want = gradient(DType.F64)
    np.testing.assert_allclose(gradient(DType.F32), want, rtol=1e-5, atol=1e-6 * np.abs(want).max())
    x = Tensor.new(values, Device.Cpu)
    np.testing.assert_allclose(mc.compile(call)(x).numpy(), call(x).numpy(), rtol=1e-6)


def test_mlx_differentiates_it() -> None:
    with mx.stream(mx.cpu):
        x = mx.array(uniform(3001))
        found = mx.grad(lambda x: accurate_sum.total(mx.square(x), (0,)))(x)
        np.testing.assert_array_equal(np.array(found), 2 * uniform(3001))

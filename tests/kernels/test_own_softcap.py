"""The launches of soft-capping and of its gradient."""

from __future__ import annotations

from pathlib import Path

from metal_candle import Tensor, Var, features
from metal_candle.kernels import softcap as module
from metal_candle.kernels.softcap import softcap
from metal_candle.nn import ops

import mlx.core as mx
import numpy as np
import pytest
from launched import BACKWARD, DTYPES, FORWARD, assert_near, check, check_gradients, normal, wide

SHAPES = [(), (1,), (7,), (33,), (3, 127), (2, 3, 301), (2, 3, 5, 7), (1, 4097)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(device: str, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    x = normal(*shape, dtype=dtype) * 4
    check(softcap, [x], 2.5)
    check_gradients(softcap, [x], 2.5)


def test_views(device: str) -> None:
    check_gradients(softcap, [normal(5, 34).T[1::2]], 0.5)
    check_gradients(softcap, [mx.broadcast_to(normal(5), (17, 5))], 0.5)


@pytest.mark.parametrize("cap", [1e-3, 30.0, 1e30])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_numbers(device: str, dtype: mx.Dtype, cap: float) -> None:
    x = mx.array([mx.inf, -mx.inf, mx.nan, 0.0, -0.0, 3e38, -3e38, 65504, 1e-6, -1e-6, 60, -60]).astype(dtype)
    ones = mx.ones(x.shape, dtype)
    (y,) = softcap.forward(x, cap)
    assert_near(y, softcap.reference(wide(x), cap), FORWARD[dtype])
    (got,) = softcap.vjp(ones, (x,), (y,), (True,), cap)
    _, (want,) = mx.vjp(lambda x: softcap.reference(x, cap), [wide(x)], [wide(ones)])
    assert got is not None
    assert_near(got, want, BACKWARD[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_slope_of_what_is_nearly_capped(device: str, dtype: mx.Dtype) -> None:
    x = mx.linspace(4, 40, 33).astype(dtype)  # down to 4 · exp(-40) = 2e-17
    (got,) = softcap.vjp(mx.ones(x.shape, dtype), (x,), softcap.forward(x, 2.0), (True,), 2.0)
    assert got is not None
    want = 1 / np.cosh(np.array(wide(x), np.float64) / 2) ** 2
    # Relative to each, not to the largest. float32: the exponent's rounding, 40 · 2^-24. float16 has no digits below
    # 6e-5 and no numbers below 6e-8.
    relative, absolute = {mx.float32: (1e-5, 0), mx.float16: (2**-10, 6e-8), mx.bfloat16: (2**-8, 0)}[dtype]
    np.testing.assert_allclose(np.array(got.astype(mx.float32)), want, relative, absolute)


def test_what_it_does_not_take(device: str) -> None:
    assert softcap.forward(mx.zeros((0, 5)), 2.0)[0].shape == (0, 5)
    assert softcap.last is not None
    assert softcap.last[1].endswith("not one launch: 0 elements")
    softcap.choose(mx.zeros((3,), mx.int32), 2.0)
    assert softcap.last[1].endswith("not one launch: mlx.core.int32")


@pytest.mark.parametrize("dtype", [*DTYPES, mx.float64], ids=str)
def test_on_the_cpu(dtype: mx.Dtype) -> None:
    with mx.stream(mx.cpu):
        x, cotangent = ((normal(3, 33, key=key) * size).astype(dtype) for key, size in ((0, 4), (1, 1)))
        outputs = softcap.forward(x, 2.5)
        (got,) = softcap.vjp(cotangent, (x,), outputs, (True,), 2.5)
        assert got is not None
        assert got.dtype == outputs[0].dtype == dtype
        wide_x, upstream, gradient = (np.array(array.astype(mx.float64)) for array in (x, cotangent, got))
    # 1 - tanh² of a tanh near 1, rounded, is off by two roundings of 1, 2^-23, times cotangents of up to 4.
    # A half is 1 / cosh² in float32, rounded once; float16 has no numbers below 6e-8.
    tolerances = {mx.float64: (1e-14, 2e-15), mx.float32: (1e-6, 1e-6), mx.float16: (2**-10, 6e-8)}
    relative, absolute = tolerances.get(dtype, (2**-8, 0))
    np.testing.assert_allclose(gradient, upstream / np.cosh(wide_x / 2.5) ** 2, relative, absolute)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_a_gpu_takes_instead_is_one_operation_each(dtype: mx.Dtype, tmp_path: Path) -> None:
    x, cotangent = (normal(3, 5, dtype=dtype, key=key) for key in (0, 1))
    mx.eval(x, cotangent)
    (y,) = module._COMPILED.forward(x, 2.5)
    for array in (y, module._COMPILED.vjp(cotangent, (x,), (y,), (True,), 2.5)[0]):
        assert array is not None
        mx.export_to_dot(str(tmp_path / "graph.dot"), array)
        assert (tmp_path / "graph.dot").read_text().count("shape=rectangle") == 1


def test_mlx_transformations(device: str) -> None:
    x, along = normal(3, 7), normal(3, 7, key=1)

    def loss(x: mx.array) -> mx.array:
        return mx.square(softcap(x, 0.5)).sum()

    def wanted(x: mx.array) -> mx.array:
        return mx.square(softcap.reference(x, 0.5)).sum()

    for function in (loss, mx.checkpoint(loss)):
        assert_near(mx.grad(function)(x), mx.grad(wanted)(x), BACKWARD[mx.float32])
    second = mx.grad(lambda x: (mx.grad(loss)(x) * along).sum())(x)
    assert_near(second, mx.grad(lambda x: (mx.grad(wanted)(x) * along).sum())(x), BACKWARD[mx.float32])
    (got,), (want,) = (mx.jvp(function, [x], [along])[1] for function in (loss, wanted))
    assert_near(got, want, BACKWARD[mx.float32])
    with features.disabled("custom-metal"):  # MLX batches no launch
        by_rows = mx.vmap(lambda row: softcap(row, 0.5))(x)
        assert_near(by_rows, softcap.reference(x, 0.5), FORWARD[mx.float32])


def test_the_operation_launches_it(device: str) -> None:
    x = np.random.default_rng(0).normal(size=(5, 33)).astype(np.float32)
    var = Var.from_tensor(Tensor(x))
    grads = ops.softcap(var, 0.5).sum_all().backward()
    assert softcap.last is not None
    assert softcap.last[0] == "one launch"
    np.testing.assert_allclose(grads[var].numpy(), 1 / np.cosh(x.astype(np.float64) / 0.5) ** 2, rtol=1e-5, atol=1e-9)

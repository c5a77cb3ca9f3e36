"""Picked log-probabilities: both variants and MLX's own differentiation of them."""

from __future__ import annotations

from metal_candle.kernels import picked_log_softmax as module
from metal_candle.kernels.kernel import on_cpu
from metal_candle.kernels.picked_log_softmax import picked_log_softmax

import mlx.core as mx
import numpy as np
import pytest


def near(got: mx.array, want: mx.array, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(np.array(got), np.array(want), rtol=10 * tolerance, atol=tolerance)


def operands(*shape: int, count: int = 1) -> tuple[mx.array, mx.array]:
    x = 3 * mx.random.normal(shape, key=mx.random.key(0))
    return x, mx.random.randint(0, shape[-1], (*shape[:-1], count), key=mx.random.key(1))


@pytest.mark.skipif(not on_cpu(), reason="the CPU's variant")
def test_which_variant_computes_it() -> None:
    for shape, name in (((70, 123), "rational"), ((3, 5), "reference")):
        picked_log_softmax.choose(*operands(*shape))
        assert picked_log_softmax.last is not None
        assert picked_log_softmax.last[0] == name


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("shape", [(70, 123), (2, 3, 5000), (9000,), (3, 5)])
def test_mlx_differentiates_it(shape: tuple[int, ...], count: int) -> None:
    x, ids = operands(*shape, count=count)
    weight = mx.random.normal(ids.shape, key=mx.random.key(2))
    found = [
        mx.value_and_grad(lambda x, f=f: (f(x, ids) * weight).sum())(x)
        for f in (picked_log_softmax, picked_log_softmax.reference)
    ]
    near(found[0][0], found[1][0], 2e-4)
    near(found[0][1], found[1][1])


def test_second_derivative() -> None:
    x, ids = operands(40, 60)

    def twice(function: object) -> mx.array:
        first = mx.grad(lambda x: function(x, ids).sum())  # type: ignore[operator]
        return mx.grad(lambda x: mx.square(first(x)).sum())(x)

    near(twice(picked_log_softmax), twice(picked_log_softmax.reference))


def test_the_gradient_with_the_result_alone_and_not_contiguous() -> None:
    x, ids = operands(70, 123)
    turned = mx.contiguous(x.T).T
    outputs = picked_log_softmax.forward(turned, ids)
    cotangent = mx.random.normal(ids.shape, key=mx.random.key(2))
    alone, saved = (
        picked_log_softmax.vjp(cotangent, (turned, ids), given, (True, False)) for given in (outputs[0], outputs)
    )
    assert alone[1] is saved[1] is None
    near(alone[0], saved[0])
    near(outputs[0], picked_log_softmax.reference(x, ids))
    assert picked_log_softmax.vjp(cotangent, (x, ids), outputs, (False, False)) == (None, None)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_gpu_s_variant_is_the_same_function(dtype: mx.Dtype) -> None:
    x, ids = operands(70, 123)
    x = x.astype(dtype)
    cotangent = mx.ones(ids.shape, dtype)
    got, of_x = mx.vjp(lambda x: module._fast(x, ids), [x], [cotangent])
    want, plain = mx.vjp(lambda x: picked_log_softmax.reference(x, ids), [x], [cotangent])
    assert got[0].dtype == dtype
    # In bfloat16 MLX's composition rounds at each step.
    tolerance = 2e-6 if dtype == mx.float32 else 5e-2
    near(got[0].astype(mx.float32), want[0].astype(mx.float32), tolerance)
    near(of_x[0].astype(mx.float32), plain[0].astype(mx.float32), tolerance)

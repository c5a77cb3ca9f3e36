"""The launch of both gradients of the gated activation."""

from __future__ import annotations

from collections.abc import Iterator

from metal_candle import Tensor, Var
from metal_candle.kernels.swiglu import swiglu

import mlx.core as mx
import numpy as np
import pytest
from launched import BACKWARD, DTYPES, assert_near, check, check_gradients, normal, wide

pytestmark = pytest.mark.usefixtures("not_compiled")


@pytest.fixture
def not_compiled() -> Iterator[None]:
    """The result is a function that MLX compiles: to the same values, but for a second of the CPU's compiler each."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (33,), (3, 127), (2, 3, 301), (2, 3, 5, 7), (1, 4097)], ids=str)
def test_values_and_gradients(device: str, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    inputs = [normal(*shape, dtype=dtype) * 4, normal(*shape, dtype=dtype, key=1)]
    check(swiglu, inputs)
    check_gradients(swiglu, inputs)


def test_views(device: str) -> None:
    both = normal(5, 34)
    check_gradients(swiglu, mx.split(both, 2, axis=-1))
    check_gradients(swiglu, [both.T[1::2], mx.broadcast_to(normal(5), (17, 5))])


def test_one_gradient_alone(device: str) -> None:
    gate, up, cotangent = (normal(3, 7, key=key) for key in range(3))
    outputs = swiglu.forward(gate, up)
    both = swiglu.vjp(cotangent, (gate, up), outputs, (True, True))
    for i, needs in enumerate([(True, False), (False, True)]):
        found = swiglu.vjp(cotangent, (gate, up), outputs, needs)
        assert found[1 - i] is None
        assert found[i] is not None
        assert both[i] is not None
        assert_near(found[i], both[i], BACKWARD[mx.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_numbers(device: str, dtype: mx.Dtype) -> None:
    gate = mx.array([88.0, 104.0, 500.0, -88.0, -104.0, -500.0, 0.0, -0.0, mx.nan, 1e-6, -1e-6, 30000.0]).astype(dtype)
    up = mx.array([1.0, 2.0, 0.5, 1.0, 30.0, 3.0, 7.0, mx.nan, 1.0, 60000.0, 1.0, 1.0]).astype(dtype)
    ones = mx.ones(gate.shape, dtype)
    found = swiglu.vjp(ones, (gate, up), swiglu.forward(gate, up), (True, True))
    _, wanted = mx.vjp(swiglu.reference, [wide(gate), wide(up)], [wide(ones)])
    for got, want in zip(found, wanted):
        assert got is not None
        assert got.dtype == dtype
        assert_near(got, want, BACKWARD[dtype])


def test_what_it_does_not_take(device: str) -> None:
    empty = mx.zeros((0, 5))
    assert swiglu.forward(empty, empty)[0].shape == (0, 5)
    assert swiglu.last is not None
    assert swiglu.last[0] != swiglu.own.name if swiglu.own else False
    swiglu.choose(normal(3), normal(3, dtype=mx.float16))
    assert "gate of mlx.core.float32, up of mlx.core.float16" in swiglu.last[1]


def test_mlx_transformations(device: str) -> None:
    gate, up = normal(3, 7), normal(3, 7, key=1)

    def loss(gate: mx.array, up: mx.array) -> mx.array:
        return mx.square(swiglu(gate, up)).sum()

    def wanted(gate: mx.array, up: mx.array) -> mx.array:
        return mx.square(swiglu.reference(gate, up)).sum()

    both = (0, 1)
    for function in (loss, mx.checkpoint(loss)):
        for got, want in zip(mx.grad(function, both)(gate, up), mx.grad(wanted, both)(gate, up)):
            assert_near(got, want, BACKWARD[mx.float32])
    second = mx.grad(lambda g: (mx.grad(loss)(g, up) * up).sum())(gate)
    assert_near(second, mx.grad(lambda g: (mx.grad(wanted)(g, up) * up).sum())(gate), BACKWARD[mx.float32])
    along = [normal(3, 7, key=2), normal(3, 7, key=3)]
    for got, want in zip(mx.jvp(loss, [gate, up], along)[1], mx.jvp(wanted, [gate, up], along)[1]):
        assert_near(got, want, BACKWARD[mx.float32])


def test_a_spelled_out_gate_is_launched(device: str) -> None:
    draw = np.random.default_rng(0)
    gate, up = (Var.from_tensor(Tensor(draw.normal(size=(5, 33)).astype(np.float32))) for _ in range(2))
    y = gate.lazy().silu() * up.lazy() if hasattr(gate, "lazy") else gate.silu() * up
    grads = y.sqr().sum_all().backward()
    _, wanted = mx.vjp(
        lambda g, u: mx.square(swiglu.reference(g, u)).sum(),
        [mx.array(gate.numpy()), mx.array(up.numpy())],
        [mx.array(1.0)],
    )
    for var, want in zip((gate, up), wanted):
        np.testing.assert_allclose(grads[var].numpy(), np.array(want), rtol=1e-4, atol=1e-5)

"""The choice between variants, and MLX's transformations of kernels."""

from __future__ import annotations

import logging
import shutil

from metal_candle import LazyTensor, features, settings
from metal_candle.kernels.add_matmul import add_matmul
from metal_candle.kernels.attention import attention
from metal_candle.kernels.elementary import exp, sigmoid
from metal_candle.kernels.kernel import on_cpu
from metal_candle.kernels.linear import linear
from metal_candle.kernels.rms_norm import rms_norm
from metal_candle.kernels.softmax import softmax
from metal_candle.kernels.swiglu import swiglu

import mlx.core as mx
import numpy as np
import pytest

cpu_only = pytest.mark.skipif(not on_cpu(), reason="the variant is the CPU's")


def sample(*shape: int, key: int = 0) -> mx.array:
    return mx.random.normal(shape or (60, 100), key=mx.random.key(key))


@cpu_only
def test_the_choice_and_its_reason() -> None:
    assert swiglu.choose(sample(), sample()).name == "rational"
    assert swiglu.last == ("rational", "float32 on the CPU")
    assert swiglu.choose(sample(2), sample(2)).name == "reference"
    assert exp.choose(sample().astype(mx.float16)).name == "rational in float32"


@cpu_only
def test_a_bias_is_added_by_the_rule_for_sums_with_products() -> None:
    weight, bias = sample(16, 100), sample(16)
    for rows, name in ((4, "mx.addmm"), (5, "product and sum")):
        linear.forward(sample(rows, 100), weight, bias)
        assert add_matmul.last is not None
        assert add_matmul.last[0] == name


def test_the_reference_on_request() -> None:
    x = sample()
    with settings.KERNELS.override("reference"):
        assert mx.array_equal(softmax(x), softmax.reference(x))
        assert softmax.last == ("reference", "METAL_CANDLE_KERNELS=reference")
        gradient = softmax.vjp(x, (x,), softmax.forward(x), (True,))[0]
    with features.disabled("custom-metal"):
        assert softmax.choose(x).name == "reference"
        assert softmax.last == ("reference", "feature custom-metal is off")
    np.testing.assert_allclose(np.array(gradient), np.array(softmax.vjp(x, (x,), softmax(x), (True,))[0]), atol=1e-7)


@cpu_only
def test_asking_for_launches_on_the_cpu_says_why_there_is_none(caplog: pytest.LogCaptureFixture) -> None:
    x = sample(100, 100)
    why = "not one launch: MLX computes on the CPU"
    with settings.KERNELS.override("custom"), settings.DEBUG.override("kernel"):
        with caplog.at_level(logging.INFO, "metal_candle.kernel"):
            assert softmax.choose(x).name == "rational"
        assert softmax.last == ("rational", f"float32 on the CPU; {why}")
        assert caplog.messages[-1].endswith(f"softmax [(100, 100)]: rational, float32 on the CPU; {why}")
        assert why in LazyTensor.randn(0.0, 1.0, (100, 100)).softmax(-1).explain()
        exp.choose(x)  # which has no launch
        assert exp.last is not None
        assert "not " not in exp.last[1]
    softmax.choose(x)
    assert softmax.last == ("rational", "float32 on the CPU")


def test_choices_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    x = sample()
    with caplog.at_level(logging.INFO, "metal_candle.kernel"):
        exp(x)
        assert not caplog.messages
        with settings.DEBUG.override("kernel"), settings.KERNELS.override("reference"):
            exp(x)
    assert caplog.messages == ["exp [(60, 100)]: reference, METAL_CANDLE_KERNELS=reference"]


def test_second_derivatives() -> None:
    x, up, weight = sample(), sample(key=1), sample(100, key=2)
    functions = [
        (lambda f, x: f(x), exp),
        (lambda f, x: f(x), sigmoid),
        (lambda f, x: f(x, up), swiglu),
        (lambda f, x: f(x) * up, softmax),
        (lambda f, x: f(x, weight, 1e-5) * up, rms_norm),
    ]
    for call, kernel in functions:

        def second(f: object, call: object = call) -> mx.array:
            def square_of_gradient(x: mx.array) -> mx.array:
                return (mx.grad(lambda y: call(f, y).sum())(x) ** 2).sum()

            return mx.grad(square_of_gradient)(x)

        np.testing.assert_allclose(
            np.array(second(kernel)), np.array(second(kernel.reference)), rtol=2e-4, atol=2e-5, err_msg=kernel.name
        )


def test_value_and_grad_and_checkpoint() -> None:
    q, k, v = (sample(1, heads, 100, 8, key=i) for i, heads in enumerate((4, 2, 2)))

    def loss(q: mx.array, k: mx.array, v: mx.array, f: object = attention) -> mx.array:
        return (f(q, k, v, 0.3, "causal") ** 2).sum()

    value, gradients = mx.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
    want, wanted = mx.value_and_grad(lambda *x: loss(*x, attention.reference), argnums=(0, 1, 2))(q, k, v)
    again = mx.grad(mx.checkpoint(loss), argnums=(0, 1, 2))(q, k, v)
    assert float(value) == pytest.approx(float(want), rel=1e-5)
    for a, b, c in zip(gradients, wanted, again):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.array(c), np.array(a), rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(on_cpu() and not shutil.which("g++"), reason="mx.compile on a CPU needs a C++ compiler")
def test_compile() -> None:
    gate, up = sample(), sample(key=1)
    gradient = mx.grad(lambda x: (swiglu(x, up) * up).sum())
    np.testing.assert_allclose(np.array(mx.compile(gradient)(gate)), np.array(gradient(gate)), rtol=1e-5, atol=1e-6)

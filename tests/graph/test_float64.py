"""F64 on the CPU is computed in float64 throughout: MLX computes exp, sin, erf, softmax … of float64 in float32."""

from __future__ import annotations

import math
from typing import Any

from metal_candle import Device, DType, LazyTensor, Tensor
from metal_candle.graph import operations
from metal_candle.graph.node import record
from metal_candle.graph.operation import REGISTRY, Operation, Sample
from metal_candle.graph.operations.cross_entropy import HeadCrossEntropy
from metal_candle.kernels import double, matmul
from metal_candle.kernels.cross_entropy import cross_entropy

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

CASES = [
    pytest.param(kind, sample, id=f"{key}-{sample.shapes}-{sample.params}")
    for key, kind in REGISTRY.items()
    if kind.__module__.startswith(operations.__name__)
    for sample in kind.samples
    if DType.F16 not in sample.params
]


@pytest.mark.parametrize("tensor", [Tensor, LazyTensor])
@pytest.mark.parametrize(("kind", "sample"), CASES)
def test_every_record(kind: type[Operation], sample: Sample, tensor: Any) -> None:
    """Against the record's NumPy definition. 1e-12 leaves a factor of a thousand for sums and cancelling terms."""
    rng, ids = np.random.default_rng(2), dict(sample.ids)
    inputs = [
        rng.integers(0, ids[place], shape) if place in ids else rng.uniform(sample.low, sample.high, shape)
        for place, shape in enumerate(sample.shapes)
    ]
    assert kind.numpy is not None
    with np.errstate(divide="ignore"):  # the logarithm of a sum of nothing
        want = np.asarray(kind.numpy(*inputs, *sample.params))
    tensors = [tensor.new(x, Device.Cpu) for x in inputs]
    result = tensors[0]._wrap(record(kind(*sample.params), tuple(x._node for x in tensors)))
    if result.dtype.is_float():
        assert result.dtype is DType.F64
    np.testing.assert_allclose(result.numpy(), want, rtol=1e-12, atol=1e-12)


def of(function: Any, values: Any) -> Any:
    with mx.stream(mx.cpu):
        return np.array(function(mx.array(np.asarray(values, np.float64), mx.float64)))


FUNCTIONS = {
    # Up to 700 the argument's own rounding is worth 700 · 1.1e-16.
    "exp": (double.exp, math.exp, -700.0, 700.0, 1e-15),
    "sin": (double.sin, math.sin, -1e9, 1e9, 0.0),
    "cos": (double.cos, math.cos, -1e9, 1e9, 0.0),
    "erf": (double.erf, math.erf, -8.0, 8.0, 2e-14),
    "sigmoid": (double.sigmoid, lambda x: 1 / (1 + math.exp(-x)), -700.0, 700.0, 2e-15),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_functions_against_the_c_library(name: str, data: st.DataObject) -> None:
    function, reference, low, high, relative = FUNCTIONS[name]
    values = data.draw(st.lists(st.floats(low, high), min_size=1, max_size=8))
    np.testing.assert_allclose(
        of(function, values), [reference(value) for value in values], rtol=relative, atol=0 if relative else 4e-16
    )


def test_the_ends() -> None:
    ends = [math.inf, -math.inf, math.nan, 0.0, 1e300, -1e300]
    np.testing.assert_array_equal(of(double.exp, ends), [math.inf, 0.0, math.nan, 1.0, math.inf, 0.0])
    np.testing.assert_array_equal(of(double.erf, ends), [1.0, -1.0, math.nan, 0.0, 1.0, -1.0])
    np.testing.assert_array_equal(of(double.sigmoid, ends), [1.0, 0.0, math.nan, 0.5, 1.0, 0.0])
    for function in (double.sin, double.cos):
        assert np.isnan(of(function, ends)[:3]).all()


def test_softmax_and_logsumexp_of_rows_with_infinities() -> None:
    rows = [[-math.inf, -math.inf], [math.inf, 0.0], [-math.inf, 2.0], [1e308, 1e308]]
    np.testing.assert_allclose(of(lambda x: double.logsumexp(x, (1,)), rows), [-math.inf, math.inf, 2.0, 1e308])
    np.testing.assert_array_equal(of(double.softmax, rows)[2:], [[0.0, 1.0], [0.5, 0.5]])


def test_addmm_keeps_its_factors() -> None:
    a = np.random.default_rng(0).normal(size=(3, 3))
    got = of(lambda x: matmul.addmm(x, x, x, alpha=0.1, beta=0.3), a)
    np.testing.assert_allclose(got, 0.1 * a @ a + 0.3 * a, rtol=1e-14, atol=1e-15)


def test_float32_takes_mlx_functions() -> None:
    x = mx.array([0.1, 0.2, 0.3])
    for name in ("exp", "sin", "cos", "erf", "sigmoid"):
        np.testing.assert_array_equal(np.array(getattr(double, name)(x)), np.array(getattr(mx, name)(x)))


def test_cross_entropy_from_logits_and_from_hidden_states() -> None:
    rng = np.random.default_rng(1)
    hidden, weight, targets = rng.normal(size=(4, 5)), rng.normal(size=(7, 5)), np.array([0, 6, 2, 2])
    logits = hidden @ weight.T
    want = np.log(np.exp(logits).sum(1)) - logits[np.arange(4), targets]
    with mx.stream(mx.cpu):
        got = cross_entropy(mx.array(logits, mx.float64), mx.array(targets))
        np.testing.assert_allclose(np.array(got), want, rtol=1e-12)
    tensors = [Tensor.new(x, Device.Cpu) for x in (hidden, weight, targets)]
    loss = tensors[0]._wrap(record(HeadCrossEntropy(), tuple(x._node for x in tensors)))
    assert loss.dtype is DType.F64
    np.testing.assert_allclose(loss.numpy(), want, rtol=1e-12)

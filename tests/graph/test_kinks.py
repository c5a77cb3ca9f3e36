"""Gradients where an operation has a kink or a tie: candle's choice, lazy and eager; and second use of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import Device, LazyTensor, Tensor, Var

import numpy as np
import pytest

NAN, INF = float("nan"), float("inf")
KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])


def gradients(kind: Any, call: Callable[..., Any], *values: Any, dtype: str = "f32") -> list[Any]:
    """The gradient of the sum of ``call`` for each operand; ``None`` where there is no entry."""
    variables = [Var.new(np.array(value, np.float64), Device.Cpu, dtype) for value in values]
    operands = [v if kind is Tensor else LazyTensor.from_tensor(v) for v in variables]
    grads = call(*operands).sum_all().backward()
    return [None if grads.get(v) is None else grads[v].tolist() for v in variables]


ONE: list[tuple[str, Callable[[Any], Any], list[float], list[float]]] = [
    ("abs", lambda x: x.abs(), [-2.0, -0.0, 0.0, 2.0], [-1.0, 1.0, 1.0, 1.0]),
    ("relu", lambda x: x.relu(), [-2.0, -0.0, 0.0, 2.0], [0.0, 1.0, 1.0, 1.0]),
    ("elu", lambda x: x.elu(0.5), [0.0, 2.0], [0.5, 1.0]),
    ("sqrt", lambda x: x.sqrt(), [0.0, 4.0], [INF, 0.25]),
    ("powf 0", lambda x: x.powf(0.0), [0.0, 2.0], [0.0, 0.0]),
    ("powf 1", lambda x: x.powf(1.0), [0.0, -2.0], [1.0, 1.0]),
    ("powf 2", lambda x: x.powf(2.0), [0.0, -2.0], [0.0, -4.0]),
    ("norm at 0", lambda x: x.norm(), [0.0, 0.0], [NAN, NAN]),
    ("norm", lambda x: x.norm(), [3.0, 4.0], [0.6, 0.8]),
    ("max", lambda x: x.max(0), [1.0, 3.0, 3.0, 2.0], [0.0, 1.0, 1.0, 0.0]),
    ("max_keepdim", lambda x: x.max_keepdim(0), [3.0, 3.0], [1.0, 1.0]),
    ("max_all", lambda x: x.max_all(), [3.0, 3.0, 1.0], [1.0, 1.0, 0.0]),
    ("min", lambda x: x.min(0), [1.0, 3.0, 1.0, 2.0], [1.0, 0.0, 1.0, 0.0]),
    ("maximum of a number", lambda x: x.maximum(1.0), [0.0, 1.0, 2.0], [0.0, 0.5, 1.0]),
    ("minimum of a number", lambda x: x.minimum(1.0), [0.0, 1.0, 2.0], [1.0, 0.5, 0.0]),
    ("clamp", lambda x: x.clamp(0.0, 1.0), [-1.0, 0.0, 0.5, 1.0, 2.0], [0.0, 0.5, 1.0, 0.5, 0.0]),
    ("clamp of crossed bounds", lambda x: x.clamp(2.0, 1.0), [0.0, 3.0], [0.0, 0.0]),
    ("log_sum_exp of -inf", lambda x: x.log_sum_exp(0), [-INF, -INF], [0.0, 0.0]),
    ("log_sum_exp", lambda x: x.log_sum_exp(0), [-INF, 2.0], [0.0, 1.0]),
    ("var of one", lambda x: x.var(0), [1.0], [NAN]),
    ("affine by 0", lambda x: x * 0.0 + x, [1.0, 2.0], [1.0, 1.0]),
    ("recip", lambda x: x.recip(), [0.0, 2.0], [-INF, -0.25]),
    ("log", lambda x: x.log(), [0.0, 2.0], [INF, 0.5]),
    ("cumsum", lambda x: x.cumsum(0), [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]),
    ("used twice", lambda x: x.relu() + x.relu() * x, [-1.0, 0.0, 2.0], [0.0, 1.0, 5.0]),
]


@KINDS
@pytest.mark.parametrize(("call", "values", "want"), [case[1:] for case in ONE], ids=[case[0] for case in ONE])
def test_kinks_of_one_tensor(kind: Any, call: Callable[[Any], Any], values: list[float], want: list[float]) -> None:
    for dtype, tolerance in (("f32", 1e-6), ("f64", 1e-14)):
        (got,) = gradients(kind, call, values, dtype=dtype)
        np.testing.assert_allclose(got, want, rtol=tolerance)


@KINDS
def test_ties_of_two_tensors_are_halved(kind: Any) -> None:
    left, right = [1.0, 2.0, 2.0], [2.0, 2.0, 1.0]
    assert gradients(kind, lambda a, b: a.maximum(b), left, right) == [[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]]
    assert gradients(kind, lambda a, b: a.minimum(b), left, right) == [[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]
    assert gradients(kind, lambda a, b: a.broadcast_maximum(b), left, [2.0]) == [[0.0, 0.5, 0.5], [2.0]]


@KINDS
def test_clamp_between_tensors_has_gradients_for_the_bounds(kind: Any) -> None:
    got = gradients(kind, lambda x, low, high: x.clamp(low, high), [-1.0, 0.5, 3.0], [0.0] * 3, [1.0] * 3)
    assert got == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


@KINDS
def test_powers_at_zero(kind: Any) -> None:
    left, right = gradients(kind, lambda a, b: a.pow(b), [0.0, 0.0, 0.0, 2.0, -2.0], [0.0, 1.0, 2.0, 3.0, 2.0])
    np.testing.assert_allclose(left, [0.0, 1.0, 0.0, 12.0, -4.0], rtol=1e-6)
    np.testing.assert_allclose(right, [0.0, 0.0, 0.0, 8 * np.log(2), NAN], rtol=1e-6)


@KINDS
@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.round(),
        lambda x: x.ceil(),
        lambda x: x.floor(),
        lambda x: x.sign(),
        lambda x: x.round_to(1),
        lambda x: x.gt(0.0),
        lambda x: x.eq(x),
        lambda x: x.argmax(0),
        lambda x: x.to_dtype("i64"),
        lambda x: x.to_dtype("u8").to_dtype("f32"),
    ],
)
def test_these_end_the_gradient(kind: Any, call: Callable[[Any], Any]) -> None:
    x = Var.new([0.4, 1.6], Device.Cpu)
    result = call(x if kind is Tensor else LazyTensor.from_tensor(x))
    assert not result.track_op()
    assert result.sum_all().backward().get(x) is None


@KINDS
@pytest.mark.parametrize(("source", "target"), [("f32", "f16"), ("f16", "bf16"), ("bf16", "f64"), ("f64", "f32")])
def test_conversions_between_floats_pass_the_gradient_in_the_source_dtype(kind: Any, source: str, target: str) -> None:
    x = Var.new(np.array([1.0, 2.0]), Device.Cpu, source)
    grads = (x if kind is Tensor else LazyTensor.from_tensor(x)).to_dtype(target).sqr().sum_all().backward()
    assert (grads[x].dtype, grads[x].tolist()) == (x.dtype, [2.0, 4.0])


@KINDS
def test_a_second_backward_gives_the_same(kind: Any) -> None:
    x = Var.new([0.3, -1.2, 2.0], Device.Cpu)
    y = x if kind is Tensor else LazyTensor.from_tensor(x)
    loss = (y.gelu() * y.erf() + y.maximum(0.0) ** 2 - y.cumsum(0).var(0)).sum_all()
    first, second = (loss.backward()[x].tolist() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("cut", [lambda x: x * 0.0, lambda x: x.affine(0.0, 3.0), lambda x: x.mul_scalar(0.0)])
def test_multiplying_by_0_ends_the_gradient(cut: Any) -> None:
    w, v = Var([1.0, 2.0]), Var([3.0, 4.0])
    for start in (w, LazyTensor.from_tensor(w)):
        grads = (cut(start) + (v if start is w else LazyTensor.from_tensor(v))).sum_all().backward()
        assert grads.get(w) is None
        assert "affine" in grads.explain(w) or "mul_scalar" in grads.explain(w)
        assert grads[v].to_vec1() == [1.0, 1.0]

"""Python's operators: between tensors they broadcast, numbers take the tensor's dtype, lazy and eager alike."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var, error

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv]
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]
Operator = Callable[[Any, Any], Any]


def name(function: Any) -> str:
    return str(function.__name__)


@KINDS
@pytest.mark.parametrize("function", [*ARITHMETIC, operator.pow, *COMPARISONS], ids=name)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_tensors_broadcast(kind: Any, function: Operator, data: st.DataObject) -> None:
    found = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3))
    a, b = (data.draw(hnp.arrays(np.float32, s, elements=st.floats(0.25, 4, width=32))) for s in found.input_shapes)
    got = function(kind.new(a, Device.Cpu), kind.new(b, Device.Cpu))
    assert isinstance(got, kind)
    assert got.dtype is (DType.U8 if function in COMPARISONS else DType.F32)
    np.testing.assert_allclose(got.numpy(), function(a, b), rtol=1e-5)


@KINDS
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "f64"])
@pytest.mark.parametrize("function", [*ARITHMETIC, operator.pow, *COMPARISONS], ids=name)
def test_numbers_on_either_side_take_the_floats_dtype(kind: Any, function: Operator, dtype: str) -> None:
    values = np.array([0.5, 1.0, 2.0])
    x = kind.new(values, Device.Cpu, dtype)
    for number in (2, 2.5, np.float64(2.0), np.int32(2), True):
        for got, want in [
            (function(x, number), function(values, float(number))),
            (function(number, x), function(float(number), values)),
        ]:
            assert got.dtype is (DType.U8 if function in COMPARISONS else DType.of(dtype))
            np.testing.assert_allclose(np.asarray(got.numpy(), np.float64), want, rtol=1e-2)


@KINDS
@pytest.mark.parametrize("dtype", ["u8", "i16", "u32", "i32", "i64"])
def test_integers_beside_numbers(kind: Any, dtype: str) -> None:
    x = kind.new([7, 8], Device.Cpu, dtype)
    for got, want in [
        (x + 1, [8, 9]),
        (1 + x, [8, 9]),
        (x - 2.0, [5, 6]),
        (10 - x, [3, 2]),
        (x * 2, [14, 16]),
        (x / 2, [3, 4]),
        (100 / x, [14, 12]),
    ]:
        assert (got.dtype, got.tolist()) == (DType.of(dtype), want)
    assert (x > 7).tolist() == operator.lt(7, x).tolist() == [0, 1]


def test_signed_division_truncates() -> None:
    x = Tensor.new([-7, 7])
    assert (x / 2).tolist() == [-3, 3]
    assert (x / Tensor.new([2, -2])).tolist() == [-3, -3]
    assert (-7 / Tensor.new([2, -2])).tolist() == [-3, 3]


@KINDS
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: x * 1.5, "mul: got 1.5 beside a tensor of u8"),
        (lambda x: 0.5 + x, "add: got 0.5 beside a tensor of u8"),
        (lambda x: x + 256, "add: got 256 beside a tensor of u8"),
        (lambda x: x - float("inf"), "sub: got inf beside a tensor of u8"),
        (lambda x: x == float("nan"), "eq: got nan beside a tensor of u8"),
        (lambda x: x / 0, "div: got 0 for a tensor of u8 to be divided by"),
        (lambda x: x**2, "pow: got dtype u8"),
        (lambda x: 2**x, "pow: got dtype u8"),
        (lambda x: x + x.to_dtype("i64"), "add: dtypes differ, lhs u8, rhs i64"),
        (lambda x: x.to_dtype("f32") @ x, "matmul: dtypes differ, lhs f32, rhs u8"),
    ],
)
def test_what_does_not_fit_is_refused_when_recorded(kind: Any, call: Callable[[Any], Any], text: str) -> None:
    with pytest.raises(mc.Error, match=text.replace("(", r"\(")):
        call(kind.new([[1, 2], [3, 4]], dtype="u8"))


@KINDS
def test_division_of_floats_by_zero_is_infinite(kind: Any) -> None:
    got = kind.new([1.0, -1.0, 0.0]) / 0
    np.testing.assert_array_equal(got.numpy(), np.array([np.inf, -np.inf, np.nan], np.float32))


@KINDS
def test_unary_operators(kind: Any) -> None:
    x = kind.new([-1.5, 2.0])
    assert (-x).tolist() == [1.5, -2.0]
    assert abs(x).tolist() == [1.5, 2.0]
    assert abs(kind.new([-3, 3])).tolist() == [3, 3]


@KINDS
def test_powers(kind: Any) -> None:
    x = kind.new([-2.0, 0.0, 3.0])
    assert (x**2).tolist() == [4.0, 0.0, 9.0]
    assert (x**0).tolist() == [1.0, 1.0, 1.0]
    assert (x ** kind.new([3.0, 0.0, 1.0])).tolist() == [-8.0, 1.0, 3.0]
    assert (2**x).tolist() == [0.25, 1.0, 8.0]
    assert pow(x, 1).tolist() == [-2.0, 0.0, 3.0]


@KINDS
def test_matmul_broadcasts_and_takes_tensors_only(kind: Any) -> None:
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    b = np.arange(8, dtype=np.float32).reshape(4, 2)
    np.testing.assert_array_equal((kind.new(a) @ kind.new(b)).numpy(), a @ b)
    for other in (2.0, [[1.0]], b):
        with pytest.raises(TypeError):
            kind.new(a) @ other
    with pytest.raises(error.ShapeMismatchBinaryOpError, match="matmul: got shapes"):
        kind.new(b) @ kind.new(b)


@KINDS
def test_augmented_assignment_rebinds(kind: Any) -> None:
    x = before = kind.new([1.0, 2.0])
    x += 1
    x -= kind.new([0.5])
    x *= 2
    x /= 4
    x **= 2
    np.testing.assert_allclose(x.numpy(), [0.5625, 1.5625])
    assert before.tolist() == [1.0, 2.0]
    assert x is not before


def test_augmented_assignment_of_a_variable_leaves_the_variable() -> None:
    variable = x = Var.new([1.0, 2.0])
    x += 1
    assert variable.tolist() == [1.0, 2.0]
    assert not x.is_variable()
    assert x.sum_all().backward()[variable].tolist() == [1.0, 1.0]


@KINDS
def test_other_types_are_left_to_python(kind: Any) -> None:
    x = kind.new([1.0])
    assert (x == None) is False  # noqa: E711
    assert (x != "a") is True
    for other in ("a", None, [1.0], np.ones(1)):
        with pytest.raises(TypeError):
            x + other
        with pytest.raises(TypeError):
            other * x
    with pytest.raises(TypeError):
        x % 2
    with pytest.raises(TypeError):
        x // 2


def test_an_eager_operator_refuses_a_lazy_operand_and_a_lazy_one_lifts_an_eager() -> None:
    eager, lazy = Tensor.new([1.0]), LazyTensor.new([2.0])
    with pytest.raises(mc.Error, match=r"LazyTensor\.from_tensor"):
        eager + lazy
    assert (lazy + eager).tolist() == [3.0]


def test_tensors_can_be_kept_in_sets_and_dicts() -> None:
    a, b = Tensor.new([1.0]), Tensor.new([1.0])
    assert len({a, b}) == 2
    assert {a: 1}[a] == 1


@KINDS
def test_a_number_costs_one_operation(kind: Any) -> None:
    x = kind.new([1.0, 2.0])
    for result in (x + 1, 1 - x, x * 2, x**2):
        node = result._node
        assert node.operation.name() in ("affine", "powf")

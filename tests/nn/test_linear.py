"""``Linear``: values, dtypes, views, gradients, errors, how it starts, and ``mlx.nn.Linear``."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var, nn

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from checking import assert_slopes, check, check_dtypes, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, assert_near

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])


def layer(x: Any, weight: Any, bias: Any = None) -> Any:
    return nn.Linear(weight, bias).forward(x)


def affine(x: Any, weight: Any, bias: Any = 0.0) -> Any:
    return x @ weight.T + bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(4,), (1, 4), (5, 4), (2, 3, 4), (2, 1, 3, 4), (2, 1, 3, 2, 4), (0, 4), (2, 0, 4)], ids=str
)
def test_values_in_every_dtype(shape: tuple[int, ...], bias: bool) -> None:
    arrays = (normal(*shape, seed=1), normal(3, 4, seed=2), *([normal(3, seed=3)] if bias else []))
    check_dtypes(layer, arrays, affine)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=3), st.integers(1, 17), st.integers(1, 9), st.booleans())
def test_values_of_any_shape(leading: list[int], inner: int, outer: int, bias: bool) -> None:
    arrays = (normal(*leading, inner, seed=1), normal(outer, inner, seed=2), *([normal(outer, seed=3)] if bias else []))
    check(layer, arrays, affine(*(array.astype(np.float64) for array in arrays)))


def test_no_inputs_leave_the_bias() -> None:
    check(layer, (np.zeros((2, 0), np.float32), np.zeros((3, 0), np.float32), normal(3)), np.tile(normal(3), (2, 1)))


@KINDS
def test_views_as_weight_and_input(kind: Any) -> None:
    """A transposed, a strided and a narrowed tensor are what their elements say."""
    weight, x, bias = normal(4, 6, seed=1), normal(5, 3, 4, seed=2), normal(12, seed=3)
    wide = Tensor(weight).t()
    part = nn.Linear(wide.narrow(0, 1, 4), Tensor(bias)[::3])
    got = part.forward(kind.new(x).transpose(0, 1))
    assert_near(got.numpy(), x.swapaxes(0, 1) @ weight[:, 1:5] + bias[::3], VALUE[DType.F32])
    assert isinstance(got, kind)


def test_the_example_of_candles_documentation() -> None:
    weight = Tensor.new([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], Device.Cpu)
    assert nn.Linear.new(weight, None).forward(Tensor.new([[10.0, 100.0]])).to_vec2() == [[210.0, 430.0, 650.0]]


def test_getters() -> None:
    weight, bias = Tensor(normal(3, 4)), Tensor(normal(3))
    assert nn.Linear(weight, bias).weight() is weight
    assert nn.Linear(weight, bias).bias() is bias
    assert nn.Linear(weight).bias() is None


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 4)])
def test_gradients_are_slopes(shape: tuple[int, ...]) -> None:
    assert_slopes(layer, normal(*shape, seed=1), normal(3, 4, seed=2), normal(3, seed=3))


@KINDS
def test_gradients_of_halves(kind: Any) -> None:
    """Sums over 64 rows, of float16 products, added up in float32: the error is that of one rounding."""
    x, weight, bias = (normal(*shape, seed=i).astype(np.float16) for i, shape in enumerate([(64, 8), (3, 8), (3,)]))
    variables = [Var(array) for array in (weight, bias)]
    grads = nn.Linear(*variables).forward(kind.new(x)).sum_all().backward()
    wide = x.astype(np.float64).sum(0)
    assert_near(grads[variables[0]].numpy(), np.tile(wide, (3, 1)), VALUE[DType.F16])
    assert grads[variables[1]].to_vec1() == [64.0] * 3


def test_refuses() -> None:
    weight, bias = Tensor(normal(3, 4)), Tensor(normal(3))
    for kind in (Tensor, LazyTensor):
        with pytest.raises(mc.error.ShapeMismatchBinaryOpError) as shapes:
            nn.Linear(weight).forward(kind.new(normal(2, 5)))
        assert str(shapes.value) == "linear: got shapes (2, 5) and (3, 4); takes (…, in) and weight (out, in)"
        with pytest.raises(mc.error.ShapeMismatchBinaryOpError, match=r"linear: got shapes \(\) and \(3, 4\)"):
            nn.Linear(weight).forward(kind.new(1.0))
        with pytest.raises(mc.error.ShapeMismatchBinaryOpError, match=r"linear: got shapes \(2, 4\) and \(4,\)"):
            nn.Linear(Tensor(normal(4))).forward(kind.new(normal(2, 4)))
        with pytest.raises(mc.error.DTypeMismatchError, match="linear: dtypes differ, lhs f16, rhs f32"):
            nn.Linear(weight).forward(kind.new(normal(2, 4)).to_dtype("f16"))
        with pytest.raises(mc.error.UnsupportedDTypeForOpError, match="linear"):
            nn.Linear(weight.to_dtype("i64")).forward(kind.new(normal(2, 4)).to_dtype("i64"))
        with pytest.raises(mc.error.ShapeMismatchBinaryOpError, match=r"add: got shapes \(2, 3\) and \(4,\)"):
            nn.Linear(weight, Tensor(normal(4))).forward(kind.new(normal(2, 4)))
        with pytest.raises(mc.error.DTypeMismatchError, match="add: dtypes differ, lhs f32, rhs f16"):
            nn.Linear(weight, bias.to_dtype("f16")).forward(kind.new(normal(2, 4)))


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 4)])
def test_the_same_as_mlx_nn(shape: tuple[int, ...]) -> None:
    """float32 results of the same sums in another order; tolerance of four terms."""
    theirs = mlx.nn.Linear(4, 3)
    x, upstream = normal(*shape), normal(*shape[:-1], 3, seed=1)
    weight, bias = Var(theirs.weight), Var(theirs.bias)
    ours = nn.Linear(weight, bias)
    given = Var(x)
    got = ours.forward(given)
    assert_near(got.numpy(), np.array(theirs(mx.array(x))), VALUE[DType.F32])
    grads = (got * Tensor(upstream)).sum_all().backward()

    def loss(parameters: Any, x: Any) -> Any:
        theirs.update(parameters)
        return (theirs(x) * mx.array(upstream)).sum()

    wanted, of_x = mx.grad(loss, argnums=(0, 1))(theirs.parameters(), mx.array(x))
    for variable, want in ((weight, wanted["weight"]), (bias, wanted["bias"]), (given, of_x)):
        assert_near(grads[variable].numpy(), np.array(want), VALUE[DType.F32])


@pytest.mark.parametrize("make", [nn.linear, lambda *sizes: nn.linear_b(*sizes[:2], True, sizes[2])])
def test_how_it_starts(make: Any) -> None:
    mc.Device.Cpu.set_seed(0)
    varmap = nn.VarMap()
    made = make(50, 400, nn.VarBuilder.from_varmap(varmap, DType.F32))
    assert {name: var.dims() for name, var in varmap.data().items()} == {"weight": [400, 50], "bias": [400]}
    # A standard deviation over 20,000 normal numbers is good to 0.5 %, a mean to 0.7 % of it: four and more allowed.
    weight, bias = made.weight().numpy(), made.bias().numpy()
    assert weight.std() == pytest.approx(np.sqrt(2 / 50), rel=0.02)
    assert abs(weight.mean()) < 0.03 * weight.std()
    bound = 1 / np.sqrt(50)
    assert np.abs(bias).max() <= bound
    assert bias.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)


def test_without_bias_and_by_flag() -> None:
    varmap = nn.VarMap()
    vb = nn.VarBuilder.from_varmap(varmap, DType.BF16)
    for prefix, made in (
        ("a", nn.linear_no_bias(4, 3, vb.pp("a"))),
        ("b", nn.linear_b(4, 3, False, vb.pp("b"))),
    ):
        assert made.bias() is None
        assert made.weight().dims() == [3, 4]
        assert varmap.data()[f"{prefix}.weight"].dtype is DType.BF16
    assert list(varmap.data()) == ["a.weight", "b.weight"]


def test_from_tensors() -> None:
    tensors = {"weight": Tensor(normal(3, 4)), "bias": Tensor(normal(3))}
    vb = nn.VarBuilder.from_tensors(tensors, DType.F32)
    x = normal(2, 4, seed=1)
    want = affine(x, normal(3, 4), normal(3))
    assert_near(nn.linear(4, 3, vb).forward(Tensor(x)).numpy(), want, VALUE[DType.F32])
    with pytest.raises(mc.error.UnexpectedShapeError, match=r"weight: expected shape \(4, 3\), got \(3, 4\)"):
        nn.linear(3, 4, vb)


def test_no_inputs_from_a_builder() -> None:
    """A bias of a layer without inputs is 0, where candle divides by the root of 0."""
    made = nn.linear(0, 3, nn.VarBuilder.from_varmap(nn.VarMap(), DType.F32))
    assert made.forward(Tensor.zeros((2, 0), "f32")).to_vec2() == [[0.0] * 3] * 2


@KINDS
def test_a_layer_learns_a_plane(kind: Any) -> None:
    """Least squares by gradient descent, as candle's optimizer test has it: x · [3, 1] - 2."""
    x = Tensor([[2.0, 1.0], [7.0, 4.0], [-4.0, 12.0], [5.0, 8.0]])
    y = x.matmul(Tensor([[3.0], [1.0]])).broadcast_add(Tensor(-2.0))
    varmap = nn.VarMap()
    made = nn.linear(2, 1, nn.VarBuilder.from_varmap(varmap, DType.F32))
    inputs, wanted = (x, y) if kind is Tensor else map(LazyTensor.from_tensor, (x, y))
    for _ in range(1000):
        grads = made.forward(inputs).sub(wanted).sqr().sum_all().backward()
        for var in varmap.all_vars():
            var.set(var.as_detached_tensor() - grads[var] * 0.004)
    # What is left of the start shrinks by a constant factor a step.
    assert_near(made.weight().numpy(), [[3.0, 1.0]], VALUE[DType.F16])
    assert_near(made.bias().numpy(), [-2.0], VALUE[DType.BF16])

"""``LayerNorm`` and ``RmsNorm``: values against NumPy and ``mlx.nn``, gradients, config, errors."""

from __future__ import annotations

from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var, nn
from metal_candle.nn import ops

import mlx.core as mx
import mlx.nn as mlx_nn
import numpy as np
import pytest
from checking import assert_slopes, check, check_dtypes, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, assert_near

EPS = 1e-5
F32 = VALUE[DType.F32]
KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
SHAPES = pytest.mark.parametrize("shape", [(4,), (1,), (5, 1), (3, 7), (2, 3, 123), (0, 4)])


def layer_normed(x: Any, weight: Any = 1.0, bias: Any = 0.0) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * weight + bias


def rms_normed(x: Any, weight: Any = 1.0, bias: Any = 0.0) -> Any:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight + bias


def rows(shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    return normal(*shape) + 1.0, normal(shape[-1], seed=1), normal(shape[-1], seed=2)


@SHAPES
def test_layer_norm(shape: tuple[int, ...]) -> None:
    x, weight, bias = rows(shape)
    check_dtypes(lambda x, w, b: nn.LayerNorm(w, b, EPS)(x), (x, weight, bias), layer_normed)
    check_dtypes(lambda x, w: nn.LayerNorm.new_no_bias(w, EPS)(x), (x, weight), layer_normed)
    check_dtypes(lambda x, w, b: ops.layer_norm(x, w, b, EPS), (x, weight, bias), layer_normed)


@SHAPES
def test_rms_norm(shape: tuple[int, ...]) -> None:
    x, weight, _ = rows(shape)
    check_dtypes(lambda x, w: nn.RmsNorm(w, EPS)(x), (x, weight), rms_normed)
    check_dtypes(lambda x, w: nn.RmsNorm(w, EPS).forward_diff(x), (x, weight), rms_normed)
    check_dtypes(lambda x, w: nn.RmsNorm(w, EPS).into_inner()(x), (x, weight), rms_normed)
    check_dtypes(lambda x, w: nn.LayerNorm.rms_norm(w, EPS)(x), (x, weight), rms_normed)
    check_dtypes(lambda x, w: ops.rms_norm(x, w, EPS), (x, weight), rms_normed)


def test_rms_norm_with_a_bias() -> None:
    x, weight, bias = rows((2, 3, 8))
    variables = nn.VarMap()
    config = nn.LayerNormConfig(EPS, remove_mean=False)
    layer = nn.layer_norm(8, config, nn.VarBuilder.from_varmap(variables, "f32"))
    variables.set([("weight", Tensor(weight)), ("bias", Tensor(bias))])
    check(layer, (x,), rms_normed(x, weight, bias))
    assert (layer.remove_mean(), layer.eps()) == (False, EPS)
    grads = (layer(Tensor(x)) * Tensor(x)).sum_all().backward()
    assert_near(grads[variables.data()["weight"]].numpy(), (rms_normed(x) * x).sum((0, 1)), F32)
    assert_near(grads[variables.data()["bias"]].numpy(), x.sum((0, 1)), F32)


@pytest.mark.parametrize("shape", [(4,), (1,), (5, 1), (2, 3, 123)])
def test_spelled_out(shape: tuple[int, ...]) -> None:
    check_dtypes(lambda x, w, b: ops.layer_norm_slow(x, w, b, EPS), rows(shape), layer_normed)
    check_dtypes(lambda x, w: ops.rms_norm_slow(x, w, EPS), rows(shape)[:2], rms_normed)


@KINDS
def test_of_a_view(kind: Any) -> None:
    x, weight, bias = normal(7, 3), normal(7), normal(7, seed=1)
    layer = nn.LayerNorm(Tensor(weight), Tensor(bias), EPS)
    assert_near(layer(kind.new(x).t()).numpy(), layer_normed(x.T, weight, bias), F32)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 70), st.integers(1, 9), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_any_offset_and_scale(n: int, count: int, offset: float, scale: float) -> None:
    x = (normal(count, n, seed=n) * scale + offset).astype(np.float32)
    layer = nn.LayerNorm(Tensor.ones((n,), "f32"), Tensor.zeros((n,), "f32"), EPS)
    wide = x.astype(np.float64)
    # The mean is right to some roundings of the largest element, which one over the deviation then makes larger.
    error = 4e-7 * np.abs(wide).max() / np.sqrt(wide.var(-1, keepdims=True) + EPS)
    assert (np.abs(layer(Tensor(x)).numpy() - layer_normed(wide)) <= error + 1e-5).all()


@pytest.mark.parametrize(
    "layer",
    [
        lambda x, w, b: nn.LayerNorm(w, b, EPS)(x),
        lambda x, w, b: ops.layer_norm(x, w, b, EPS),
        lambda x, w, b: ops.layer_norm_slow(x, w, b, EPS),
        lambda x, w, b: nn.LayerNorm.new_no_bias(w, EPS)(x) * b,
        lambda x, w, b: nn.RmsNorm(w, EPS)(x) * b,
        lambda x, w, b: nn.RmsNorm(w, EPS).forward_diff(x) * b,
        lambda x, w, b: ops.rms_norm_slow(x, w, EPS) * b,
    ],
)
def test_slopes(layer: Any) -> None:
    assert_slopes(layer, *rows((2, 3, 5)))


def test_mlx() -> None:
    x, weight, bias = rows((2, 5, 24))
    theirs = mlx_nn.LayerNorm(24, EPS)
    theirs.weight, theirs.bias = mx.array(weight), mx.array(bias)
    check(nn.LayerNorm(Tensor(weight), Tensor(bias), EPS), (x,), np.array(theirs(mx.array(x))))
    of_squares = mlx_nn.RMSNorm(24, EPS)
    of_squares.weight = mx.array(weight)
    check(nn.RmsNorm(Tensor(weight), EPS), (x,), np.array(of_squares(mx.array(x))))


@KINDS
def test_published(kind: Any) -> None:
    """The figures of candle's own tests."""
    three, half = Tensor.new([3.0]), Tensor.new([0.5])

    def layer(n: int) -> nn.LayerNorm:
        return nn.LayerNorm.new(Tensor.cat([three] * n, 0), Tensor.cat([half] * n, 0), 1e-8)

    assert (layer(1).eps(), layer(1).remove_mean()) == (1e-8, True)
    assert layer(1)(kind.new([[[2.0]]])).flatten_all().to_vec1() == [0.5]
    assert_near(layer(2)(kind.new([[[4.0, 0.0]]])).numpy(), [[[3.5, -2.5]]], F32)
    got = layer(3)(kind.new([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [9.0, 8.0, 7.0]]])).numpy()
    np.testing.assert_array_equal(
        np.round(got, 4), np.float32([[[-3.1742, 0.5, 4.1742], [-3.1742, 0.5, 4.1742], [4.1742, 0.5, -3.1742]]])
    )
    of_squares = nn.LayerNorm.rms_norm(Tensor.new([1.0]), EPS)
    assert (of_squares.eps(), of_squares.remove_mean(), of_squares.bias()) == (EPS, False, None)


def test_from_a_builder() -> None:
    variables = nn.VarMap()
    builder = nn.VarBuilder.from_varmap(variables, "f32")
    assert nn.LayerNormConfig.default() == nn.LayerNormConfig(eps=1e-5, remove_mean=True, affine=True)
    layer = nn.layer_norm(4, nn.LayerNormConfig.default(), builder.pp("a"))
    assert (layer.weight().to_vec1(), layer.bias().to_vec1()) == ([1.0] * 4, [0.0] * 4)  # type: ignore[union-attr]
    assert (layer.eps(), layer.remove_mean()) == (1e-5, True)
    assert nn.layer_norm(4, 1e-3, builder.pp("a")).eps() == 1e-3
    without = nn.layer_norm_no_bias(4, 1e-6, builder.pp("b"))
    assert (without.bias(), without.eps(), without.remove_mean()) == (None, 1e-6, True)
    bare = nn.layer_norm(4, nn.LayerNormConfig(remove_mean=False, affine=False), builder.pp("c"))
    assert (bare.bias(), bare.remove_mean()) == (None, False)
    assert nn.rms_norm(4, 1e-6, builder.pp("d")).weight().to_vec1() == [1.0] * 4
    assert list(variables.data()) == ["a.weight", "a.bias", "b.weight", "c.weight", "d.weight"]
    # What is set later, as by an optimizer, is seen.
    variables.data()["a.bias"].set(Tensor.ones((4,), "f32"))
    assert_near(layer(Tensor.zeros((2, 4), "f32")).numpy(), np.ones((2, 4)), F32)


def test_rms_norm_keeps_what_it_is_given() -> None:
    weight = Tensor(normal(8))
    layer = nn.RmsNorm(weight, 1e-6)
    assert layer.weight() is weight
    assert layer.into_inner().weight() is weight
    assert (layer.eps(), layer.into_inner().eps(), layer.into_inner().remove_mean()) == (1e-6, 1e-6, False)


@KINDS
def test_gradient_reaches_the_parameters(kind: Any) -> None:
    weight, bias = Var(normal(4)), Var(normal(4))
    grads = nn.LayerNorm(weight, bias, EPS)(kind.new(normal(3, 4))).sum_all().backward()
    assert_near(grads[bias].numpy(), [3.0] * 4, F32)
    assert grads[weight].dims() == [4]


@KINDS
def test_refuses(kind: Any) -> None:
    weight = Tensor(normal(4))
    layer, of_squares = nn.LayerNorm(weight, weight, EPS), nn.RmsNorm(weight, EPS)
    with pytest.raises(ValueError, match=r"^layer_norm: got shapes \(2, 5\) and \(4,\); takes \(…, n\) and weight and"):
        layer(kind.new(normal(2, 5)))
    with pytest.raises(ValueError, match=r"^rms_norm: got shapes \(2, 5\) and \(4,\); takes \(…, n\) and weight \(n,"):
        of_squares(kind.new(normal(2, 5)))
    with pytest.raises(ValueError, match=r"^layer_norm_slow: got shapes \(2, 5\) and \(4,\); takes \(…, n\) and rows"):
        ops.layer_norm_slow(kind.new(normal(2, 5)), weight, weight, EPS)
    with pytest.raises(IndexError, match="layer_norm: dim -1 is out of range"):
        layer(kind.new(1.0))
    with pytest.raises(TypeError, match=r"^layer_norm: dtypes differ, lhs f16, rhs f32"):
        layer(kind.new(normal(2, 4)).to_dtype("f16"))
    with pytest.raises(TypeError, match=r"^layer_norm: got config 'x'; takes a LayerNormConfig or eps, a number"):
        nn.layer_norm(4, "x", nn.VarBuilder.zeros("f32"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^rms_norm: got None for eps; takes a number"):
        nn.RmsNorm(weight, None)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="bias"):
        nn.layer_norm(4, EPS, nn.VarBuilder.from_tensors({"weight": weight}, "f32"))

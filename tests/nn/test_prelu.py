"""``nn.PReLU``: one weight, a weight for each channel; slopes of both; where weights come from; refusals."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var, nn

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from checking import assert_slopes, check, check_dtypes, normal

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
# The tensor's shape, and how its weights lie beside it.
CHANNELS = [((3,), (3,)), ((2, 3), (3,)), ((2, 3, 4), (3, 1)), ((2, 3, 4, 5), (3, 1, 1)), ((0, 3, 2), (3, 1))]


def prelu(x: Any, weight: Any) -> Any:
    return np.maximum(x, 0) + weight * np.minimum(x, 0)


@pytest.mark.parametrize(("shape", "beside"), CHANNELS)
def test_a_weight_for_each_channel(shape: tuple[int, ...], beside: tuple[int, ...]) -> None:
    def layer(x: Any, weight: Any) -> Any:
        return nn.PReLU(weight, False)(x)

    x, weight = normal(*shape), normal(3, seed=1)
    check_dtypes(layer, (x, weight), lambda x, weight: prelu(x, weight.reshape(beside)))
    if x.size:
        assert_slopes(layer, x, weight)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 1), (2, 3, 4)])
@pytest.mark.parametrize("of_weight", [(), (1,)])
def test_one_weight(shape: tuple[int, ...], of_weight: tuple[int, ...]) -> None:
    def layer(x: Any, weight: Any) -> Any:
        return nn.PReLU(weight, True)(x)

    x, weight = normal(*shape), np.full(of_weight, 0.3, np.float32)
    check_dtypes(layer, (x, weight), lambda x, weight: prelu(x, weight.reshape(())))
    check(layer, (x, weight), np.array(mlx.nn.PReLU(1, 0.3)(mx.array(x)).reshape(shape)))
    assert_slopes(layer, x, weight)


def test_a_weight_of_the_tensors_shape() -> None:
    x, weight = normal(2, 2), normal(2, 2, seed=1)
    check(lambda x, weight: nn.PReLU(weight, False)(x), (x, weight), prelu(x, weight))


@KINDS
def test_at_0_both_slopes_meet(kind: Any) -> None:
    x, weight = Var(np.zeros(2, np.float32)), Var(np.array([0.5], np.float32))
    grads = nn.PReLU(weight, True)(x if kind is Tensor else LazyTensor.from_tensor(x)).sum_all().backward()
    assert (grads[x].to_vec1(), grads[weight].to_vec1()) == ([0.75, 0.75], [0.0])


def test_weights_start_at_a_quarter_and_are_trained() -> None:
    varmap = nn.VarMap()
    vb = nn.VarBuilder.from_varmap(varmap, DType.F32, Device.Cpu)
    one, each = nn.prelu(None, vb.pp("one")), nn.prelu(3, vb.pp("each"))
    assert (one.weight().to_vec1(), one.is_scalar()) == ([0.25], True)
    assert (each.weight().to_vec1(), each.is_scalar()) == ([0.25] * 3, False)
    assert sorted(varmap.data()) == ["each.weight", "one.weight"]
    x = Tensor(normal(4, 3))
    grads = each(one(x)).sum_all().backward()
    assert all(grads.get(var) is not None for var in varmap.all_vars())
    assert nn.PReLU.new(each.weight(), False)(x).dims() == [4, 3]


@KINDS
def test_refusals(kind: Any) -> None:
    weight = Tensor(normal(3))
    layer = nn.PReLU(weight, False)
    for call, error, text in [
        (
            lambda: layer(kind.new(normal(2, 4))),
            mc.error.ShapeMismatchError,
            r"prelu: got 4 channels in dim 1 of \(2, 4\); takes 3, as weights",
        ),
        (
            lambda: layer(kind.new(normal(4))),
            mc.error.ShapeMismatchBinaryOpError,
            r"prelu: got shapes \(4,\) and \(3,\); takes a weight that broadcasts to the tensor",
        ),
        (lambda: nn.PReLU(weight, True)(kind.new(normal(2, 3))), mc.error.ShapeMismatchError, r"reshape: .*"),
        (
            lambda: layer(kind.new(normal(2, 3)).to_dtype("f16")),
            mc.error.DTypeMismatchError,
            r"prelu: dtypes differ, lhs f16, rhs f32.*",
        ),
        (lambda: layer(kind.new([[1, 2, 3]])), mc.error.Error, r"prelu: .*"),
    ]:
        with pytest.raises(error, match=f"^{text}$"):
            call()

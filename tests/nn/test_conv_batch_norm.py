"""Convolutions that take a batch norm in: values, gradients, and norms that they cannot take."""

from __future__ import annotations

import metal_candle as mc
from metal_candle import DType, Tensor, Var, nn

import numpy as np
import pytest
from checking import FLOATS, normal
from tolerance import VALUE, assert_near


def batch_norm(channels: int) -> nn.BatchNorm:
    mean, var, weight, bias = (Var(normal(channels, seed=i)) for i in range(4))
    return nn.BatchNorm(channels, mean, Var(np.abs(var.numpy()) + 0.5), weight, bias, 1e-3)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bias", [True, False])
def test_absorbs_a_batch_norm(bias: bool, dtype: DType) -> None:
    config = nn.Conv2dConfig(padding=1, stride=2, groups=2)
    arrays = normal(6, 2, 3, 3, seed=1), normal(6, seed=2)
    weight, of_bias = (Tensor(array).to_dtype(dtype) for array in arrays)
    conv, norm = nn.Conv2d(weight, of_bias if bias else None, config), batch_norm(6)
    one = conv.absorb_bn(norm)
    x = Tensor(normal(2, 4, 7, 7)).to_dtype(dtype)
    wide = nn.Conv2d(weight.to_dtype("f32"), of_bias.to_dtype("f32") if bias else None, config)
    want = norm.forward_t(wide.forward(x.to_dtype("f32")), False)
    got = one.forward(x)
    assert (got.dtype, one.config()) == (dtype, config)
    # The weight was rounded once more, and the sum is of 18 terms of size 1.
    near = VALUE[dtype]._replace(absolute=8 * VALUE[dtype].absolute)
    assert_near(got.to_dtype("f32").numpy(), want.numpy(), near)


def test_absorbs_statistics_that_a_half_does_not_hold() -> None:
    weight = Tensor.full(1000.0, (1, 1, 1, 1)).to_dtype("f16")
    norm = nn.BatchNorm(1, Tensor([0.0]), Tensor([1e6]), Tensor([1.0]), Tensor([0.25]), 0.0)
    one = nn.Conv2d(weight).absorb_bn(norm)
    absorbed = one.bias()
    assert absorbed is not None
    assert (one.weight().flatten_all().to_vec1(), absorbed.to_vec1()) == ([1.0], [0.25])


def test_gradients_go_through_an_absorbed_batch_norm() -> None:
    """They are those of the two layers: for weights and biases of both, none for the statistics."""
    weight, of_bias, norm = Var(normal(6, 2, 3, 3, seed=1)), Var(normal(6, seed=2)), batch_norm(6)
    conv, x = nn.Conv2d(weight, of_bias), Tensor(normal(2, 2, 5, 5))
    affine = norm.weight_and_bias()
    assert affine is not None
    want = norm.forward_t(conv.forward(x), False).sqr().sum_all().backward()
    got = conv.absorb_bn(norm).forward(x).sqr().sum_all().backward()
    for variable in (weight, of_bias, *affine):
        assert_near(got[variable].numpy(), want[variable].numpy(), VALUE[DType.F32]._replace(absolute=1e-4))
    assert got.get(norm.running_mean()) is None
    assert got.get(norm.running_var()) is None


def test_absorbs_no_batch_norm_without_weight() -> None:
    norm = nn.BatchNorm.new_no_bias(4, Tensor(normal(4)), Tensor.ones((4,)), 1e-5)
    with pytest.raises(mc.error.ArgumentValueError) as found:
        nn.Conv2d(Tensor(normal(4, 3, 2, 2))).absorb_bn(norm)
    assert str(found.value) == "absorb_bn: got a batch norm without weight and bias; takes one with both"

"""``nn.Activation``: each variant's formula and slope, as a module, as a value, as a configuration names it."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var, nn
from metal_candle.nn import Activation

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from checking import assert_slopes, check, check_dtypes, normal

_erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def hard_sigmoid(x: Any) -> Any:
    return np.clip((x + 3) / 6, 0, 1)


def tanh_gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def swiglu(x: Any) -> Any:
    gate, up = np.split(x, 2, -1)
    return gate * sigmoid(gate) * up


def elu(x: Any, alpha: float) -> Any:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


NUMPY: dict[Activation, Callable[[Any], Any]] = {
    Activation.Gelu: lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    Activation.NewGelu: tanh_gelu,
    Activation.GeluPytorchTanh: tanh_gelu,
    Activation.Relu: lambda x: np.maximum(x, 0),
    Activation.Relu2: lambda x: np.maximum(x, 0) ** 2,
    Activation.Relu6: lambda x: np.clip(x, 0, 6),
    Activation.Silu: lambda x: x * sigmoid(x),
    Activation.Swish: lambda x: x * sigmoid(x),
    Activation.Sigmoid: sigmoid,
    Activation.HardSigmoid: hard_sigmoid,
    Activation.HardSwish: lambda x: x * hard_sigmoid(x),
    Activation.Swiglu: swiglu,
    Activation.Mish: lambda x: x * np.tanh(np.logaddexp(0, x)),
    Activation.Elu(1.5): lambda x: elu(x, 1.5),
    Activation.LeakyRelu(0.1): lambda x: np.where(x > 0, x, 0.1 * x),
}
MLX: dict[Activation, Callable[[Any], Any]] = {
    Activation.Gelu: mlx.nn.gelu,
    Activation.NewGelu: mlx.nn.gelu_approx,
    Activation.Relu: mlx.nn.relu,
    Activation.Relu2: mlx.nn.relu2,
    Activation.Relu6: mlx.nn.relu6,
    Activation.Silu: mlx.nn.silu,
    Activation.Sigmoid: mx.sigmoid,
    Activation.HardSwish: mlx.nn.hardswish,
    Activation.Mish: mlx.nn.mish,
    Activation.Elu(1.5): lambda x: mlx.nn.elu(x, 1.5),
    Activation.LeakyRelu(0.1): lambda x: mlx.nn.leaky_relu(x, 0.1),
}
EACH = pytest.mark.parametrize("activation", NUMPY, ids=repr)


@EACH
@pytest.mark.parametrize("shape", [(2,), (0, 4), (5, 6), (2, 3, 4)])
def test_values(activation: Activation, shape: tuple[int, ...]) -> None:
    check_dtypes(activation, (4 * normal(*shape),), NUMPY[activation])


@EACH
def test_slopes(activation: Activation) -> None:
    assert_slopes(activation, 4 * normal(3, 4))


@pytest.mark.parametrize("activation", MLX, ids=repr)
def test_as_mlx_has_it(activation: Activation) -> None:
    x = 4 * normal(5, 7)
    check(activation, (x,), np.array(MLX[activation](mx.array(x))))


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
def test_it_is_a_module(kind: Any) -> None:
    x = kind.new(normal(3, 4))
    want = np.maximum(normal(3, 4), 0)
    for got in (
        Activation.Relu(x),
        Activation.Relu.forward(x),
        x.apply(Activation.Relu),
        Activation.Relu.forward_t(x, True),
    ):
        np.testing.assert_array_equal(got.numpy(), want)
    layers = nn.seq().add(Activation.Relu).add(Activation.LeakyRelu(0.5))
    assert isinstance(layers(x), kind)
    assert isinstance(Activation.Relu, nn.Module)


def test_ties_are_candles() -> None:
    for activation, x, slope in [
        (Activation.Relu6, 6.0, 0.5),
        (Activation.Relu6, 0.0, 0.5),
        (Activation.Relu, 0.0, 1.0),
    ]:
        variable = Var(np.array([x], np.float32))
        assert activation(variable).backward()[variable].to_vec1() == [slope]


def test_values_compare_by_content() -> None:
    assert Activation.Elu(1.5) == Activation.Elu(1.5) != Activation.Elu(1.0)
    assert Activation.Elu(0.1) != Activation.LeakyRelu(0.1)
    assert Activation.NewGelu != Activation.GeluPytorchTanh
    assert Activation.Relu != "relu"
    assert len({Activation.Elu(1.5), Activation.Elu(1.5), Activation.Relu}) == 2
    assert Activation.default() is Activation.Gelu
    assert repr([Activation.Relu, Activation.Elu(1.5)]) == "[Activation.Relu, Activation.Elu(1.5)]"
    for activation in NUMPY:
        for same in (copy.deepcopy(activation), pickle.loads(pickle.dumps(activation))):
            assert same == activation
            assert same(Tensor([0.5, -0.5])).tolist() == activation(Tensor([0.5, -0.5])).tolist()


NAMES = {
    "gelu": Activation.Gelu,
    "newgelu": Activation.NewGelu,
    "gelu_new": Activation.NewGelu,
    "relu": Activation.Relu,
    "relu2": Activation.Relu2,
    "relu6": Activation.Relu6,
    "silu": Activation.Silu,
    "sigmoid": Activation.Sigmoid,
    "hardsigmoid": Activation.HardSigmoid,
    "swiglu": Activation.Swiglu,
    "swish": Activation.Swish,
    "mish": Activation.Mish,
    "hardswish": Activation.HardSwish,
    "gelupytorchtanh": Activation.GeluPytorchTanh,
    "gelu_pytorch_tanh": Activation.GeluPytorchTanh,
}


def test_names() -> None:
    for name, activation in NAMES.items():
        assert Activation.from_name(name) is activation
        assert activation.name() == name.replace("gelu_new", "newgelu").replace("_", "")
    assert Activation.from_name({"elu": 1.0}) == Activation.Elu(1.0)
    assert Activation.from_name({"leakyrelu": 0.1}) == Activation.LeakyRelu(0.1)
    assert Activation.from_name(Activation.Elu(2)) == Activation.Elu(2.0)
    assert (Activation.Elu(1.0).name(), Activation.LeakyRelu(1.0).name()) == ("elu", "leakyrelu")


TAKES = (
    "takes gelu, gelu_new, gelu_pytorch_tanh, gelupytorchtanh, hardsigmoid, hardswish, mish, newgelu, relu, relu2, "
    "relu6, sigmoid, silu, swiglu, swish, {'elu': alpha} or {'leakyrelu': slope}"
)


def test_names_that_are_none() -> None:
    for value, kind, text in [
        ("quick_gelu", mc.error.ArgumentValueError, f"activation: got 'quick_gelu'; {TAKES}"),
        ("elu", mc.error.ArgumentValueError, f"activation: got 'elu'; {TAKES}"),
        ({"relu": 1.0}, mc.error.ArgumentValueError, f"activation: got a dict of 'relu'; {TAKES}"),
        ({}, mc.error.ArgumentValueError, f"activation: got a dict of nothing; {TAKES}"),
        (None, mc.error.ArgumentTypeError, f"activation: got None; {TAKES}"),
        ({"elu": "1"}, mc.error.ArgumentTypeError, "activation: got '1' for elu; takes a number"),
    ]:
        with pytest.raises(kind) as error:
            Activation.from_name(value)
        assert str(error.value) == text
    for name, parameter in (("gelu", None), ("Elu", None), ("Gelu", 1.0)):
        with pytest.raises(mc.error.ArgumentValueError, match=f"^Activation: got '{name}'; takes Activation.Gelu and"):
            Activation(name, parameter)
    with pytest.raises(mc.error.ArgumentTypeError, match=r"Elu: got None for alpha; takes a number"):
        Activation.Elu(None)  # type: ignore[arg-type]

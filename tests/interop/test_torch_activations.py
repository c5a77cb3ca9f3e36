"""Activations, pixel functions, one-hot encoding and dropout beside torch's: values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var, nn
from metal_candle.nn import Activation, ops

import numpy as np
import pytest
from tolerance import Tolerance, assert_near

torch = pytest.importorskip("torch", reason="torch is not installed")
functional = torch.nn.functional
pytestmark = pytest.mark.filterwarnings("ignore")

SELU = 1.6732632423543772, 1.0507009873554805
ELEMENTWISE: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "gelu": (Activation.Gelu, functional.gelu),
    "new_gelu": (Activation.NewGelu, lambda x: functional.gelu(x, approximate="tanh")),
    "gelu_pytorch_tanh": (Activation.GeluPytorchTanh, lambda x: functional.gelu(x, approximate="tanh")),
    "relu": (Activation.Relu, functional.relu),
    "relu2": (Activation.Relu2, lambda x: functional.relu(x).square()),
    "relu6": (Activation.Relu6, functional.relu6),
    "silu": (Activation.Silu, functional.silu),
    "swish": (Activation.Swish, functional.silu),
    "sigmoid": (Activation.Sigmoid, torch.sigmoid),
    "hard_sigmoid": (Activation.HardSigmoid, functional.hardsigmoid),
    "hard_swish": (Activation.HardSwish, functional.hardswish),
    "mish": (Activation.Mish, functional.mish),
    "elu": (Activation.Elu(1.5), lambda x: functional.elu(x, 1.5)),
    "leaky_relu": (Activation.LeakyRelu(0.2), lambda x: functional.leaky_relu(x, 0.2)),
    "selu": (lambda x: ops.selu(x, *SELU), functional.selu),
    "swiglu": (Activation.Swiglu, lambda x: functional.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]),
    "softmax": (lambda x: ops.softmax(x, 0), lambda x: functional.softmax(x, 0)),
    "softmax_last_dim": (ops.softmax_last_dim, lambda x: functional.softmax(x, -1)),
    "log_softmax": (lambda x: ops.log_softmax(x, -1), lambda x: functional.log_softmax(x, -1)),
}
PIXELS: dict[str, tuple[tuple[int, ...], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "pixel_shuffle": ((2, 18, 3, 2), lambda x: ops.pixel_shuffle(x, 3), lambda x: functional.pixel_shuffle(x, 3)),
    "pixel_unshuffle": ((2, 3, 4, 6), lambda x: ops.pixel_unshuffle(x, 2), lambda x: functional.pixel_unshuffle(x, 2)),
    "replication_pad2d": ((2, 3, 4, 1), lambda x: ops.replication_pad2d(x, 2), torch.nn.ReplicationPad2d(2)),
}
# Both compute in float32, by different polynomials and sums. Halves are compared with torch's float32 of the same
# numbers: the result is rounded once, a gradient also in what it is the difference of, so that its absolute error goes
# with the largest one.
NEAR = {"f32": Tolerance(2e-6, 1e-6), "f16": Tolerance(2e-3, 1e-3), "bf16": Tolerance(1.6e-2, 8e-3)}


def compared(ours: Callable[[Any], Any], theirs: Callable[[Any], Any], x: Any, dtype: str, kind: Any) -> None:
    variable = Var.new(x, dtype=dtype)
    given = torch.from_numpy(variable.to_dtype(DType.F32).numpy().copy()).requires_grad_()
    want = theirs(given)
    weights = np.linspace(0.5, 1.5, want.numel(), dtype=np.float32).reshape(want.shape)
    (want * torch.from_numpy(weights)).sum().backward()
    got = ours(variable if kind is Tensor else LazyTensor.from_tensor(variable))
    gradient = got.to_dtype(DType.F32).mul(kind.new(weights)).sum_all().backward()[variable]
    for mine, other in ((got, want.detach().numpy()), (gradient, given.grad.numpy())):
        largest = max(1.0, float(np.abs(other).max()))
        near = NEAR[dtype]._replace(absolute=NEAR[dtype].absolute * largest)
        assert_near(mine.to_dtype(DType.F32).numpy(), other, near)


def numbers(*shape: int) -> Any:
    return (4 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name: str, dtype: str, kind: Any) -> None:
    compared(*ELEMENTWISE[name], numbers(5, 8), dtype, kind)


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
@pytest.mark.parametrize("name", PIXELS)
def test_pixels(name: str, kind: Any) -> None:
    shape, ours, theirs = PIXELS[name]
    compared(ours, theirs, numbers(*shape), "f32", kind)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_mish_of_large_numbers(dtype: str) -> None:
    x = np.array([-1e4, -200.0, -90.0, 90.0, 200.0, 1e4], np.float32)
    compared(ops.mish, functional.mish, x, dtype, Tensor)


@pytest.mark.parametrize("weights", [1, 3])
def test_prelu(weights: int) -> None:
    weight = np.linspace(-0.5, 0.5, weights, dtype=np.float32)
    layer = torch.nn.PReLU(weights)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    x = numbers(2, 3, 4)
    given = torch.from_numpy(x).requires_grad_()
    layer(given).square().sum().backward()
    of_x, of_weight = Var(x), Var(weight)
    grads = nn.PReLU(of_weight, weights == 1)(of_x).sqr().sum_all().backward()
    assert_near(grads[of_x].numpy(), given.grad.numpy(), NEAR["f32"])
    assert_near(grads[of_weight].numpy(), layer.weight.grad.numpy(), Tolerance(1e-5, 1e-5))


def test_one_hot() -> None:
    ids = np.random.default_rng(0).integers(0, 9, (3, 5))
    want = functional.one_hot(torch.from_numpy(ids), 9)
    got = nn.encoding.one_hot(Tensor(ids), 9, 1, 0)
    assert got.dtype is DType.I64
    np.testing.assert_array_equal(got.numpy(), want.numpy())


def test_dropout_has_torchs_distribution() -> None:
    """The generators differ, the share, the factor and the mean do not: four standard errors for each."""
    x, p, n = np.ones(100_000, np.float32), 0.3, 100_000
    torch.manual_seed(0)
    want = torch.nn.Dropout(p)(torch.from_numpy(x)).numpy()
    got = nn.Dropout(p)(Tensor(x), True).numpy()
    np.testing.assert_allclose(np.unique(got), np.unique(want), rtol=2e-7)
    assert abs(got.mean() - want.mean()) < 4 * np.sqrt(2 * p / (1 - p) / n)

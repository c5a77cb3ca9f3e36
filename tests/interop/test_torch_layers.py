"""PyTorch's linear, embedding and convolution layers: results and gradients, in float64 and float32."""

from __future__ import annotations

from typing import Any

from metal_candle import Device, DType, LazyTensor, Tensor, Var, nn

import numpy as np
import pytest
from tolerance import VALUE, Tolerance, assert_near

torch = pytest.importorskip("torch", reason="torch is not installed")

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def numbers(dtype: Any, *shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def agree(kind: Any, make: Any, theirs: Any, x: Any, weight: Any, bias: Any = None) -> None:
    """Assert equal results, and equal gradients of them weighted by other numbers, for x, weight and bias."""
    arrays = [x, weight, *([] if bias is None else [bias])]
    variables = [Var.new(array, Device.Cpu) for array in arrays]
    given = [torch.tensor(array, requires_grad=True) for array in arrays]
    want = theirs(*given)
    upstream = np.random.default_rng(1).standard_normal(tuple(want.shape)).astype(x.dtype)
    got = make(*variables[1:]).forward(variables[0] if kind is Tensor else LazyTensor.from_tensor(variables[0]))
    assert isinstance(got, kind)
    # Sums of up to a few hundred terms of size 1, in another order.
    near = VALUE[DType.F64] if x.dtype == np.float64 else Tolerance(1e-4, 1e-4)
    assert_near(got.numpy(), want.detach().numpy(), near)
    grads = got.mul(kind.new(upstream, Device.Cpu)).sum_all().backward()
    (want * torch.tensor(upstream)).sum().backward()
    for variable, tensor in zip(variables, given):
        assert_near(grads[variable].numpy(), tensor.grad.numpy(), near)


@KINDS
@DTYPES
@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (2, 1, 3, 8)])
def test_linear(shape: tuple[int, ...], dtype: Any, kind: Any) -> None:
    x, weight, bias = numbers(dtype, shape, (6, 8), (6,))
    agree(kind, nn.Linear, torch.nn.functional.linear, x, weight, bias)
    agree(kind, nn.Linear, torch.nn.functional.linear, x, weight)


@KINDS
@DTYPES
def test_embedding(dtype: Any, kind: Any) -> None:
    (table, upstream), ids = numbers(dtype, (9, 4), (3, 5, 4)), np.random.default_rng(0).integers(0, 9, (3, 5))
    variable, given = Var.new(table, Device.Cpu), torch.tensor(table, requires_grad=True)
    got = nn.Embedding(variable, 4).forward(kind.new(ids, Device.Cpu))
    want = torch.nn.functional.embedding(torch.tensor(ids), given)
    assert (got.numpy() == want.detach().numpy()).all()
    grads = got.mul(kind.new(upstream, Device.Cpu)).sum_all().backward()
    (want * torch.tensor(upstream)).sum().backward()
    assert_near(grads[variable].numpy(), given.grad.numpy(), VALUE[DType.of(grads[variable].dtype)])


# Padding, stride, dilation, groups, and the shapes of x and weight.
CONV = [
    ((0, 1, 1, 1), (2, 3, 9), (4, 3, 3)),
    ((2, 3, 2, 2), (3, 4, 11), (6, 2, 3)),
    ((1, 2, 1, 4), (2, 4, 8), (8, 1, 4)),
    ((0, 1, 1, 1), (2, 3, 7, 6), (4, 3, 3, 2)),
    ((1, 2, 1, 1), (2, 3, 8, 8), (5, 3, 3, 3)),
    ((2, 1, 2, 1), (1, 2, 5, 6), (3, 2, 3, 3)),
    ((1, 1, 1, 2), (2, 4, 5, 5), (6, 2, 3, 3)),
    ((3, 2, 2, 4), (2, 4, 7, 9), (4, 1, 3, 2)),
    ((0, 2, 1, 1), (2, 3, 5, 5), (4, 3, 1, 1)),
]


@KINDS
@DTYPES
@pytest.mark.parametrize(("given", "x", "weight"), CONV, ids=str)
def test_conv(given: tuple[int, ...], x: Any, weight: Any, dtype: Any, kind: Any) -> None:
    two = len(x) == 4
    padding, stride, dilation, groups = given
    config: Any = (nn.Conv2dConfig if two else nn.Conv1dConfig)(*given)
    make: Any = nn.Conv2d if two else nn.Conv1d
    functional = torch.nn.functional.conv2d if two else torch.nn.functional.conv1d

    def theirs(x: Any, weight: Any, bias: Any = None) -> Any:
        return functional(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)

    arrays = numbers(dtype, x, weight, weight[:1])
    agree(kind, lambda weight, bias: make(weight, bias, config), theirs, *arrays)
    agree(kind, lambda weight: make(weight, None, config), theirs, *arrays[:2])


# Padding, output padding, stride, dilation and, for one dim, groups.
TRANSPOSED = [
    ((0, 0, 1, 1, 1), (2, 3, 5), (3, 4, 3)),
    ((1, 1, 2, 1, 1), (2, 3, 5), (3, 4, 3)),
    ((2, 2, 3, 2, 2), (2, 4, 6), (4, 3, 4)),
    ((0, 1, 1, 2, 4), (1, 4, 5), (4, 1, 2)),
    ((0, 0, 1, 1), (2, 2, 4, 3), (2, 3, 3, 2)),
    ((1, 1, 2, 1), (2, 3, 4, 4), (3, 2, 3, 3)),
    ((2, 1, 3, 2), (1, 3, 4, 5), (3, 2, 3, 3)),
    ((0, 0, 2, 1), (2, 3, 3, 3), (3, 4, 1, 1)),
]


@KINDS
@DTYPES
@pytest.mark.parametrize(("given", "x", "weight"), TRANSPOSED, ids=str)
def test_conv_transpose(given: tuple[int, ...], x: Any, weight: Any, dtype: Any, kind: Any) -> None:
    two = len(x) == 4
    padding, output_padding, stride, dilation, *rest = given
    groups = rest[0] if rest else 1
    config: Any = (nn.ConvTranspose2dConfig if two else nn.ConvTranspose1dConfig)(*given)
    make: Any = nn.ConvTranspose2d if two else nn.ConvTranspose1d
    functional = torch.nn.functional.conv_transpose2d if two else torch.nn.functional.conv_transpose1d

    def theirs(x: Any, weight: Any, bias: Any = None) -> Any:
        return functional(
            x,
            weight,
            bias,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=groups,
            dilation=dilation,
        )

    arrays = numbers(dtype, x, weight, (weight[1] * groups,))
    agree(kind, lambda weight, bias: make(weight, bias, config), theirs, *arrays)
    agree(kind, lambda weight: make(weight, None, config), theirs, *arrays[:2])


@pytest.mark.parametrize("shape", [(40, 30), (40, 10, 3), (20, 10, 3, 4)])
def test_the_fans_and_gains_of_torch(shape: tuple[int, ...]) -> None:
    like = torch.empty(shape)
    for name, fan in (("fan_in", nn.FanInOut.FanIn), ("fan_out", nn.FanInOut.FanOut)):
        assert fan.for_shape(shape) == torch.nn.init._calculate_correct_fan(like, name)
    for name, of in (
        ("relu", nn.NonLinearity.ReLU),
        ("linear", nn.NonLinearity.Linear),
        ("sigmoid", nn.NonLinearity.Sigmoid),
        ("tanh", nn.NonLinearity.Tanh),
        ("selu", nn.NonLinearity.SELU),
    ):
        assert of.gain() == pytest.approx(torch.nn.init.calculate_gain(name))


@pytest.mark.parametrize("fan", list(nn.FanInOut))
def test_kaiming_of_torch(fan: nn.FanInOut) -> None:
    """Deviations and bounds over 48,000 numbers, each good to 0.4 %, and the largest to 0.1 %."""
    torch.manual_seed(0)
    Device.Cpu.set_seed(0)
    mode = "fan_in" if fan is nn.FanInOut.FanIn else "fan_out"
    shape = (80, 50, 3, 4)
    normal = torch.nn.init.kaiming_normal_(torch.empty(shape), mode=mode, nonlinearity="relu")
    uniform = torch.nn.init.kaiming_uniform_(torch.empty(shape), mode=mode, nonlinearity="tanh")
    ours = nn.Init.Kaiming(nn.NormalOrUniform.Normal, fan, nn.NonLinearity.ReLU).var(shape, "f32", Device.Cpu)
    assert ours.numpy().std() == pytest.approx(float(normal.std()), rel=0.02)
    ours = nn.Init.Kaiming(nn.NormalOrUniform.Uniform, fan, nn.NonLinearity.Tanh).var(shape, "f32", Device.Cpu)
    assert ours.numpy().std() == pytest.approx(float(uniform.std()), rel=0.02)
    assert np.abs(ours.numpy()).max() == pytest.approx(float(uniform.abs().max()), rel=2e-3)

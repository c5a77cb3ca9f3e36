"""Norms as PyTorch computes them: values, gradients, and the running statistics of some steps."""

from __future__ import annotations

from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var, nn

import numpy as np
import pytest
from tolerance import GRADIENT, VALUE, assert_near

torch = pytest.importorskip("torch", reason="torch is not installed")

EPS = 1e-5
KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def agree(kind: Any, ours: Any, theirs: Any, x: Any, parameters: dict[str, Var]) -> None:
    """Assert equal results, and gradients of a weighted sum by x and the parameters."""
    weights = normal(*x.shape, seed=9)
    start = Var(x)
    result = ours(start if kind is Tensor else LazyTensor.from_tensor(start))
    grads = result.mul(kind.new(weights)).sum_all().backward()
    other = torch.tensor(x, requires_grad=True)
    want = theirs(other)
    theirs.zero_grad()
    (want * torch.tensor(weights)).sum().backward()
    assert_near(result.numpy(), want.detach().numpy(), VALUE[DType.F32])
    assert_near(grads[start].numpy(), other.grad.numpy(), GRADIENT[DType.F32])
    named = dict(theirs.named_parameters())
    assert set(named) == set(parameters)
    for name, variable in parameters.items():
        assert_near(grads[variable].numpy(), named[name].grad.numpy(), GRADIENT[DType.F32])


def with_parameters(theirs: Any, size: int) -> dict[str, Var]:
    """Random weight and bias for a module of torch, and the same as variables."""
    values = {"weight": normal(size, seed=1), "bias": normal(size, seed=2)}
    with torch.no_grad():
        for name, value in values.items():
            getattr(theirs, name).copy_(torch.tensor(value))
    return {name: Var(value) for name, value in values.items()}


@KINDS
@pytest.mark.parametrize("shape", [(4, 8), (2, 3, 123)])
def test_layer_norm(kind: Any, shape: tuple[int, ...]) -> None:
    theirs = torch.nn.LayerNorm(shape[-1], EPS)
    parameters = with_parameters(theirs, shape[-1])
    agree(kind, nn.LayerNorm(parameters["weight"], parameters["bias"], EPS), theirs, normal(*shape) + 1, parameters)


@KINDS
def test_rms_norm(kind: Any) -> None:
    theirs = torch.nn.RMSNorm(24, EPS)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(normal(24, seed=1)))
    weight = Var(normal(24, seed=1))
    agree(kind, nn.RmsNorm(weight, EPS), theirs, normal(2, 5, 24), {"weight": weight})


@KINDS
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_group_norm(kind: Any, groups: int) -> None:
    theirs = torch.nn.GroupNorm(groups, 6, EPS)
    parameters = with_parameters(theirs, 6)
    ours = nn.GroupNorm(parameters["weight"], parameters["bias"], 6, groups, EPS)
    agree(kind, ours, theirs, normal(2, 6, 5, 4) + 1, parameters)


@KINDS
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("module", "shape", "momentum"),
    [("BatchNorm1d", (6, 3), 0.1), ("BatchNorm1d", (4, 3, 5), 0.3), ("BatchNorm2d", (4, 3, 7, 5), 0.1)],
)
def test_batch_norm(kind: Any, affine: bool, module: str, shape: tuple[int, ...], momentum: float) -> None:
    theirs = getattr(torch.nn, module)(3, EPS, momentum, affine)
    parameters = with_parameters(theirs, 3) if affine else {}
    start = Tensor.zeros((3,), "f32"), Tensor.ones((3,), "f32")
    if affine:
        pair = parameters["weight"], parameters["bias"]
        ours = nn.BatchNorm.new_with_momentum(3, *start, *pair, EPS, momentum)
    else:
        ours = nn.BatchNorm.new_no_bias_with_momentum(3, *start, EPS, momentum)
    for step in range(4):
        agree(kind, ours, theirs, normal(*shape, seed=step) * (step + 1) + step, parameters)
        assert_near(ours.running_mean().numpy(), theirs.running_mean.numpy(), VALUE[DType.F32])
        assert_near(ours.running_var().numpy(), theirs.running_var.numpy(), VALUE[DType.F32])
    ours.eval()
    theirs.eval()
    agree(kind, ours, theirs, normal(*shape, seed=8), parameters)


def test_both_refuse_one_value() -> None:
    ours = nn.BatchNorm.new_no_bias(3, Tensor.zeros((3,), "f32"), Tensor.ones((3,), "f32"), EPS)
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        torch.nn.BatchNorm1d(3)(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="more than one value per channel"):
        ours(Tensor.zeros((1, 3), "f32"))

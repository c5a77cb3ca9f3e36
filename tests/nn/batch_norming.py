"""Batch norm written out, and layers to compare with it."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, nn

import numpy as np
import pytest
from checking import normal
from tolerance import VALUE, assert_near

EPS = 1e-5
F32 = VALUE[DType.F32]
KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
SHAPES = pytest.mark.parametrize("shape", [(2, 3), (7, 1), (5, 3, 1), (1, 3, 8), (4, 3, 2, 5), (2, 2, 2, 3, 2)])


def column(row: Any, x: Any) -> Any:
    return np.reshape(row, (-1, *(1,) * (x.ndim - 2)))


def rest(x: Any) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def batch_normed(x: Any, weight: Any = 1.0, bias: Any = 0.0) -> Any:
    mean, variance = x.mean(rest(x)), x.var(rest(x))
    return running_normed(x, mean, variance, weight, bias)


def running_normed(x: Any, mean: Any, variance: Any, weight: Any = 1.0, bias: Any = 0.0) -> Any:
    normed = (x - column(mean, x)) / np.sqrt(column(variance, x) + EPS)
    return normed * column(weight, x) + column(bias, x)


def given(shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    return normal(*shape) + 0.5, normal(shape[1], seed=1), normal(shape[1], seed=2)


def starting(channels: int, dtype: Any = "f32") -> tuple[Tensor, Tensor]:
    device = mc.Device.Cpu if dtype == "f64" else None
    return Tensor.zeros((channels,), dtype, device), Tensor.ones((channels,), dtype, device)


def plain(channels: int, momentum: float = 0.1) -> nn.BatchNorm:
    return nn.BatchNorm.new_no_bias_with_momentum(channels, *starting(channels), EPS, momentum)


def from_a_map(channels: int, config: Any = EPS) -> tuple[nn.BatchNorm, nn.VarMap]:
    variables = nn.VarMap()
    return nn.batch_norm(channels, config, nn.VarBuilder.from_varmap(variables, "f32")), variables


def statistics(layer: nn.BatchNorm) -> tuple[Any, Any]:
    return layer.running_mean().numpy(), layer.running_var().numpy()


def after(batches: list[Any], momentum: float = 0.1) -> tuple[Any, Any]:
    mean, variance = np.zeros(3), np.ones(3)
    for x in batches:
        mean = mean * (1 - momentum) + x.mean(rest(x)) * momentum
        variance = variance * (1 - momentum) + x.var(rest(x), ddof=1) * momentum
    return mean, variance


def assert_after(layer: nn.BatchNorm, batches: list[Any], momentum: float = 0.1) -> None:
    for got, want in zip(statistics(layer), after(batches, momentum)):
        assert_near(got, want, F32)


BATCHES = [normal(4, 3, 5, seed=seed) * (seed + 1) + seed for seed in range(3)]

"""Gradients of any function of tensors against central differences in float64, lazy and eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import Device, DType, LazyTensor, Tensor, Var

import numpy as np
from tolerance import GRADIENT, assert_near


def assert_slopes(function: Callable[..., Any], *arrays: Any) -> None:
    """Assert that the gradients of a weighted sum of ``function(*arrays)`` are its slopes.

    ``function`` takes tensors and gives one; its arguments are float64 on the CPU, where central differences
    with a step of 1e-5 are good to some 1e-9.
    """
    wide = [np.array(array, np.float64) for array in arrays]
    weights = np.random.default_rng(7).uniform(0.5, 1.5, function(*map(_tensor, wide)).shape)

    def loss(values: list[Any]) -> float:
        return float((function(*map(_tensor, values)).numpy() * weights).sum())

    slopes = central_differences(loss, wide)
    for kind in (Tensor, LazyTensor):
        variables = [Var.new(array, Device.Cpu) for array in wide]
        given = variables if kind is Tensor else [LazyTensor.from_tensor(variable) for variable in variables]
        result = function(*given)
        assert isinstance(result, kind)
        grads = result.mul(kind.new(weights, Device.Cpu)).sum_all().backward()
        for variable, slope in zip(variables, slopes):
            assert_near(grads[variable].numpy(), slope, GRADIENT[DType.F64])


def central_differences(loss: Callable[[list[Any]], float], values: list[Any], step: float = 1e-5) -> list[Any]:
    """For each element v of float64 arrays ``(loss(v + step) - loss(v - step)) / (2 · step)``, the others unmoved."""
    slopes = []
    for i, array in enumerate(values):
        slope = np.zeros_like(array)
        for place in np.ndindex(*array.shape):
            moved = [value.copy() for value in values]
            moved[i][place] += step
            above = loss(moved)
            moved[i][place] -= 2 * step
            slope[place] = (above - loss(moved)) / (2 * step)
        slopes.append(slope)
    return slopes


def _tensor(array: Any) -> Tensor:
    return Tensor.new(array, Device.Cpu)

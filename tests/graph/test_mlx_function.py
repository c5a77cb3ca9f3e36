"""Functions of MLX arrays as records: ``MlxFunction``, and ``MlxLoss``, whose value and gradient share a pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var
from metal_candle.error import BackwardNotSupportedError
from metal_candle.graph.operation import Meta, Metas, Operation
from metal_candle.graph.operations.mlx_function import MlxFunction, MlxLoss
from metal_candle.shape import Shape

import mlx.core as mx
import numpy as np
import pytest


class Cubes:
    """x · a³, elementwise."""

    name = "cubes"

    def __init__(self) -> None:
        self.calls: list[bool] = []

    def infer(self, *inputs: Meta) -> Meta:
        return inputs[0]

    def compute(self, *inputs: mx.array, differentiated: bool) -> mx.array:
        self.calls.append(differentiated)
        x, a = inputs
        return x * a * a * a

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        return 3 * 4


class SumOfCubes(Cubes):
    def infer(self, *inputs: Meta) -> Meta:
        return Meta(Shape(()), inputs[0].dtype)

    def compute(self, *inputs: mx.array, differentiated: bool) -> mx.array:
        return super().compute(*inputs, differentiated=differentiated).sum()


class Chosen(Cubes):
    def compute(self, *inputs: mx.array, differentiated: bool) -> mx.array:
        return mx.take_along_axis(inputs[0], (inputs[1] * 2).astype(mx.float32).view(mx.uint32) % 4, axis=0)


X, A = np.array([1.0, -2.0, 0.5, 3.0], np.float32), np.array([2.0, 1.0, -1.0, 0.5], np.float32)


def test_the_gradient_is_mlx_own() -> None:
    x, a = Tensor.new(X), Var.new(A)
    y = x._record(MlxFunction(Cubes()), a)
    np.testing.assert_allclose(y.numpy(), X * A**3)
    np.testing.assert_allclose((y * y).sum_all().backward()[a].numpy(), 2 * X * A**3 * 3 * X * A**2, rtol=1e-6)
    lazy = LazyTensor.from_tensor(x)
    recorded = lazy._record(MlxFunction(Cubes()), lazy._lift(a))
    assert isinstance(recorded, LazyTensor)
    np.testing.assert_allclose(recorded.sum_all().backward()[a].numpy(), 3 * X * A**2, rtol=1e-6)


def test_a_loss_and_its_gradient_come_from_one_pass() -> None:
    computation, a = SumOfCubes(), Var.new(A)

    @mc.compile
    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        loss = x._record(MlxLoss(computation, 1), a) * 3.0
        return loss, loss.backward()[a]

    for _ in range(2):
        computation.calls.clear()
        loss, gradient = step(Tensor.new(X))
        assert computation.calls == [True]
        np.testing.assert_allclose(loss.numpy(), 3 * (X * A**3).sum(), rtol=1e-6)
        np.testing.assert_allclose(gradient.numpy(), 9 * X * A**2, rtol=1e-6)


def test_a_loss_that_was_computed_before_is_computed_again_for_its_gradient() -> None:
    computation, a = SumOfCubes(), Var.new(A)
    loss = Tensor.new(X)._record(MlxLoss(computation, 1), a)
    assert computation.calls == [False]
    gradient = loss.backward()[a]
    np.testing.assert_allclose(gradient.numpy(), 3 * X * A**2, rtol=1e-6)
    assert computation.calls == [False, True]


def test_inputs_before_the_first_have_gradients_too() -> None:
    x, a = Var.new(X), Var.new(A)

    @mc.compile
    def step(scale: Tensor) -> tuple[Tensor, Tensor]:
        grads = (x.as_tensor()._record(MlxLoss(SumOfCubes(), 1), a) * scale).backward()
        return grads[x], grads[a]

    of_x, of_a = step(Tensor.new(2.0))
    np.testing.assert_allclose(of_x.numpy(), 2 * A**3, rtol=1e-6)
    np.testing.assert_allclose(of_a.numpy(), 6 * X * A**2, rtol=1e-6)


def test_what_mlx_cannot_differentiate_is_named() -> None:
    a = Var.new(A)
    y = Tensor.new(X)._record(MlxFunction(Chosen()), a)
    with pytest.raises(BackwardNotSupportedError, match="cubes"):
        _ = y.sum_all().backward()[a].numpy()


def test_records_are_equal_by_their_computation() -> None:
    one, other = Cubes(), Cubes()
    assert MlxFunction(one) == MlxFunction(one)
    assert MlxFunction(one) != MlxFunction(other)
    assert MlxLoss(one, 1) != MlxLoss(one, 0)
    operation: Any = Operation.MlxFunction(one)
    assert (operation.name(), operation.describe()) == ("cubes", "cubes")

"""Gradients of a tensor's softmax and log-softmax: one launch along the last dim, on the CPU MLX's operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from metal_candle import LazyTensor, Tensor, Var
from metal_candle.kernels import custom
from metal_candle.kernels.softmax import log_softmax, softmax
from metal_candle.kernels.softmax_backward import launched

import mlx.core as mx
import pytest
from launched import BACKWARD, assert_near, normal


class Recording:
    """What launches in this context, with the names of what it launched."""

    trusted = True

    def __init__(self) -> None:
        inside = custom.backend()
        assert inside is not None
        self._inside = inside
        self.name = inside.name
        self.launched: list[str] = []

    def launch(self, program: custom.Program, inputs: Sequence[mx.array], how: custom.Launch) -> list[mx.array]:
        self.launched.append(program.name)
        return self._inside.launch(program, inputs, how)


def gradient(function: Callable[[Any], Any], x: mx.array, weights: mx.array, lazy: bool) -> mx.array:
    """That of ``(function(x) · weights).sum()`` by candle's reverse mode."""
    var = Var.from_tensor(Tensor(x))
    given, by = (
        (LazyTensor.from_tensor(var), LazyTensor.from_tensor(Tensor(weights))) if lazy else (var, Tensor(weights))
    )
    return mx.array((function(given) * by).sum_all().backward()[var].numpy())


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log-softmax"])
@pytest.mark.parametrize("dim", [-1, 2])
def test_along_the_last_dim_it_is_one_launch(device: str, dim: int, log: bool, lazy: bool) -> None:
    x, weights = normal(2, 3, 33), normal(2, 3, 33, key=1)
    recording = Recording()
    with custom.using(recording):
        got = gradient(lambda t: t.log_softmax(dim) if log else t.softmax(dim), x, weights, lazy)
    assert recording.launched.count("softmax_backward") == 1
    reference: Any = log_softmax.reference if log else softmax.reference
    assert_near(got, mx.grad(lambda a: (reference(a) * weights).sum())(x), BACKWARD[mx.float32])


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log-softmax"])
def test_along_another_dim_mlx_computes_it(device: str, log: bool) -> None:
    x, weights = normal(2, 5, 3), normal(2, 5, 3, key=1)
    recording = Recording()
    with custom.using(recording):
        got = gradient(lambda t: t.log_softmax(1) if log else t.softmax(1), x, weights, False)
    assert "softmax_backward" not in recording.launched
    reference: Any = log_softmax.reference if log else softmax.reference
    want = mx.grad(lambda a: (reference(mx.swapaxes(a, 1, 2)) * mx.swapaxes(weights, 1, 2)).sum())(x)
    assert_near(got, want, BACKWARD[mx.float32])


def test_on_the_cpu_nothing_is_launched() -> None:
    with mx.stream(mx.cpu):
        assert launched(mx.ones((2, 3)), mx.ones((2, 3))) is None

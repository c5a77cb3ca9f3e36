"""The trial of a launch's own gradients, when one is first asked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from metal_candle.kernels import custom
from metal_candle.kernels.kernel import Kernel
from metal_candle.kernels.own import Own, Trial

import mlx.core as mx
import pytest

FORWARD = custom.Program("forward", ("x", "y"), ("out",))
GRADIENT = custom.Program("gradient", ("cotangent", "x", "y"), ("of_x", "of_y"))


class Device:
    """A back-end that computes x · y² and its gradients, these wrongly if told to."""

    name, trusted = "a device", False

    def __init__(self, fault: str = "") -> None:
        self.fault, self.launched = fault, list[str]()

    def launch(self, program: custom.Program, inputs: Sequence[mx.array], how: custom.Launch) -> list[mx.array]:
        self.launched.append(program.name)
        if program is FORWARD:
            return [inputs[0] * inputs[1] * inputs[1]]
        if self.fault == "compiler":
            raise RuntimeError("gradient:3:1: error: no such name")
        cotangent, x, y = inputs
        return [cotangent * y * y, cotangent * x * y * (1 if self.fault else 2)]


def _how(count: int) -> custom.Launch:
    return custom.Launch(((3,),) * count, (mx.float32,) * count, (32, 1, 1), (32, 1, 1))


def _forward(x: mx.array, y: mx.array) -> tuple[mx.array, ...]:
    return tuple(custom.launch(FORWARD, [x, y], _how(1)))


def _vjp(cotangent: mx.array, inputs: Any, outputs: Any, needs: Any) -> tuple[mx.array, ...]:
    return tuple(custom.launch(GRADIENT, [cotangent, *inputs], _how(2)))


def made() -> Kernel:
    own = Own(
        "one launch",
        _forward,
        fits=lambda x, y: None,
        wins=lambda x, y: (True, "unmeasured: fewer"),
        trial=lambda x, y: Trial(x.dtype, lambda: (mx.array([1.0, -2.0, 3.0]), mx.array([0.5, 2.0, -1.0]))),
        vjp=_vjp,
    )
    return Kernel("product", lambda x, y: x * mx.square(y), lambda *_: (None, "GPU"), arity=2, own=own)


X, Y = mx.array([1.0, 2.0, 4.0]), mx.array([3.0, -1.0, 0.5])


def test_who_asks_for_no_gradient_does_not_wait_for_one() -> None:
    kernel, device = made(), Device()
    with custom.using(device):
        kernel(X, Y)
        assert device.launched == ["forward", "forward"]
        for times in (1, 2):
            found = mx.grad(lambda y: kernel(X, y).sum())(Y)
            assert found.tolist() == (2 * X * Y).tolist()
            assert device.launched.count("gradient") == 1 + times, "its trial, once, and each gradient"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("compiler", "failed: gradient:3:1: error: no such name"),
        ("wrong", r"is off by 1\.9\d* where 0\.0038\d* is allowed"),
    ],
)
def test_gradients_that_fail_their_trial_are_the_definitions(fault: str, says: str) -> None:
    kernel = made()
    with custom.using(Device(fault)):
        with pytest.warns(RuntimeWarning, match=f"one launch: its trial of its gradient on a device {says}; MLX's"):
            found = kernel.vjp(mx.ones(3), (X, Y), kernel.forward(X, Y), (True, True))
        assert [each.tolist() for each in found if each is not None] == [(Y * Y).tolist(), (2 * X * Y).tolist()]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            kernel.vjp(mx.ones(3), (X, Y), kernel.forward(X, Y), (True, True))
        kernel(X, Y)
        assert kernel.last == ("one launch", "a device: unmeasured: fewer"), "the result is still launched"

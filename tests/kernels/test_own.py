"""When a launch of ours is used, its trial on a device, and MLX's transformations of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from metal_candle import ArgumentValueError, features, settings
from metal_candle.kernels import custom
from metal_candle.kernels.kernel import Kernel
from metal_candle.kernels.own import Own, Trial

import mlx.core as mx
import numpy as np
import pytest
from opaque import opaque

PROGRAM = custom.Program("scaled_sum", ("x", "y", "scale"), ("total", "difference"))


class Device:
    """A back-end that computes the program of this file with MLX's operations, or does not."""

    name = "a device"

    def __init__(self, fault: str = "", trusted: bool = False) -> None:
        self.fault, self.trusted, self.launches = fault, trusted, 0

    def launch(self, program: custom.Program, inputs: Sequence[mx.array], how: custom.Launch) -> list[mx.array]:
        self.launches += 1
        if self.fault == "compiler":
            raise RuntimeError("[metal::Device] Unable to build library\nprogram:7:3: error: no simd_sum\n")
        x, y, scale = inputs
        found = [opaque((x + y) * scale[0].astype(x.dtype), x, y), opaque(x - y, x, y)]
        if self.fault == "wrong":
            found[1] = found[1] + 1
        if self.fault == "nan":
            found[0] = found[0] * mx.nan
        return [array[:-1] for array in found] if self.fault == "shape" else found


def _reference(x: mx.array, y: mx.array, scale: float) -> tuple[mx.array, mx.array]:
    """``(scale · (x + y), x - y)``."""
    return (x + y) * scale, x - y


def _forward(x: mx.array, y: mx.array, scale: float) -> tuple[mx.array, ...]:
    how = custom.Launch((x.shape, x.shape), (x.dtype, x.dtype), (32, 1, 1), (32, 1, 1))
    return tuple(custom.launch(PROGRAM, [x, y, custom.scalar(scale)], how))


def made(wins: bool = True) -> Kernel:
    own = Own(
        "one launch",
        _forward,
        fits=lambda x, y, scale: "a matrix" if x.ndim > 1 else None,
        wins=lambda x, y, scale: (wins, "unmeasured: 1 launch to 3"),
        trial=lambda x, y, scale: Trial(x.dtype, lambda: (mx.ones(3, x.dtype), mx.ones(3, x.dtype), 0.5)),
    )
    return Kernel("scaled_sum", _reference, lambda *_: (None, "GPU"), arity=2, own=own, results=2)


X, Y = mx.array([1.0, 2.0, 4.0]), mx.array([0.5, -1.0, 8.0])


def test_a_choice_is_kept_for_its_shapes_dtypes_and_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def wins(x: mx.array, y: mx.array, scale: float) -> tuple[bool, str]:
        asked.append((x.shape, x.dtype, scale))
        return scale > 0, "unmeasured: it depends"

    plain = made()
    assert plain.own is not None
    own = Own("one launch", _forward, plain.own.fits, wins, plain.own.trial)
    kernel = Kernel("scaled_sum", _reference, lambda *_: (None, "GPU"), arity=2, own=own, results=2)
    device = Device(trusted=True)
    with custom.using(device):
        for _ in range(3):
            assert [kernel.choose(X, Y, scale).name for scale in (2.0, -2.0)] == ["one launch", "reference"]
        assert asked == [((3,), mx.float32, 2.0), ((3,), mx.float32, -2.0)]
        kernel.choose(X[:2], Y[:2], 2.0)
        kernel.choose(X.astype(mx.float16), Y.astype(mx.float16), 2.0)
        assert asked[2:] == [((2,), mx.float32, 2.0), ((3,), mx.float16, 2.0)]
        with settings.KERNELS.override("custom"):
            assert kernel.choose(X, Y, -2.0).name == "one launch"
    with custom.using(Device("wrong")), pytest.warns(RuntimeWarning, match="its trial on a device is off by 1"):
        assert kernel.choose(X, Y, 2.0).name == "reference"
    with custom.using(device):
        assert kernel.choose(X, Y, 2.0).name == "one launch"
    monkeypatch.setattr("metal_candle.kernels.own.KEPT", 2)
    with custom.using(device):
        for scale in range(1, 9):
            kernel.choose(X, Y, float(scale))
    assert len(own._chosen) <= 2


def test_on_the_cpu_nothing_is_launched() -> None:
    kernel = made()
    assert custom.backend() is None or mx.default_device().type is mx.gpu
    with mx.stream(mx.cpu):
        kernel(X, Y, 2.0)
        assert kernel.last == ("reference", "GPU")
        with pytest.raises(RuntimeError, match="scaled_sum: got the CPU; takes a GPU"):
            _forward(X, Y, 2.0)


def test_the_launch_is_tried_once_a_dtype_and_then_used() -> None:
    kernel, device = made(), Device()
    with custom.using(device):
        for expected in (2, 3):  # the trial and the launch, then the launch
            total, difference = kernel(X, Y, 2.0)
            assert device.launches == expected
        kernel.choose(X.astype(mx.float16), Y.astype(mx.float16), 2.0)
        assert device.launches == 4
    assert kernel.last == ("one launch", "a device: unmeasured: 1 launch to 3")
    assert total.tolist() == [3.0, 2.0, 24.0]
    assert difference.tolist() == [0.5, 3.0, -4.0]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("compiler", "failed: program:7:3: error: no simd_sum"),
        ("wrong", "is off by 1 where 1e-05 is allowed"),
        ("nan", "is off by nan where 0.00101 is allowed"),
        ("shape", r"gives \[2\] where \[3\] is right"),
    ],
)
def test_a_launch_that_fails_its_trial_is_not_used(fault: str, says: str) -> None:
    kernel = made()
    with custom.using(Device(fault)):
        with pytest.warns(RuntimeWarning, match=f"one launch: its trial on a device {says}; MLX's operations are used"):
            total, _ = kernel(X, Y, 2.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            kernel(X, Y, 2.0)
        assert kernel.last is not None
        assert kernel.last[0] == "reference"
        assert kernel.last[1].startswith("GPU; not one launch: its trial on a device ")
    assert total.tolist() == [3.0, 2.0, 24.0]


def test_a_trusted_device_needs_no_trial() -> None:
    kernel, device = made(), Device(trusted=True)
    with custom.using(device):
        kernel(X, Y, 2.0)
    assert device.launches == 1


def test_the_rule_and_what_overrules_it() -> None:
    never, device = made(wins=False), Device(trusted=True)
    matrix = mx.ones((2, 2))
    with custom.using(device):
        never(X, Y, 2.0)
        assert never.last == ("reference", "GPU; not one launch: unmeasured: 1 launch to 3")
        with settings.KERNELS.override("custom"):
            never(X, Y, 2.0)
            assert never.last == ("one launch", "a device: METAL_CANDLE_KERNELS=custom")
            never(matrix, matrix, 2.0)
            assert never.last == ("reference", "GPU; not one launch: a matrix")
        for off in (settings.KERNELS.override("reference"), features.disabled("custom-metal")):
            with off:
                made()(X, Y, 2.0)
    assert device.launches == 1


def test_a_word_that_is_no_choice_of_kernels() -> None:
    with (
        settings.KERNELS.override("fast"),
        pytest.raises(ArgumentValueError, match="METAL_CANDLE_KERNELS: got 'fast'; takes auto, reference, custom"),
    ):
        made()(X, Y, 2.0)


def loss(function: Any, x: mx.array, y: mx.array) -> mx.array:
    total, difference = function(x, y, 3.0)
    return (total**2).sum() + (difference**3).sum()


def test_mlx_transformations_go_through_the_definition() -> None:
    kernel, device = made(), Device(trusted=True)
    with custom.using(device):
        for transformed in (
            lambda f: mx.grad(lambda x, y: loss(f, x, y), argnums=(0, 1))(X, Y),
            lambda f: mx.grad(mx.checkpoint(lambda x, y: loss(f, x, y)), argnums=(0, 1))(X, Y),
            lambda f: mx.jvp(lambda x, y: f(x, y, 3.0), [X, Y], [Y, X])[1],
            lambda f: [mx.grad(lambda x: (mx.grad(lambda z: loss(f, z, Y))(x) ** 2).sum())(X)],
        ):
            got, want = transformed(kernel), transformed(_reference)
            for ours, plain in zip(got, want, strict=True):
                np.testing.assert_allclose(np.array(ours), np.array(plain), rtol=1e-6)
    assert device.launches > 0


def test_the_gradients_of_one_of_two_results() -> None:
    kernel = made()
    with custom.using(Device(trusted=True)):
        outputs = kernel.forward(X, Y, 3.0)
        of_x, of_y = kernel.vjp((None, X), (X, Y), outputs, (True, True), 3.0)
        assert of_x.tolist() == X.tolist()
        assert of_y.tolist() == (-X).tolist()
        assert kernel.vjp((X, None), (X, Y), outputs, (False, True), 3.0)[0] is None


def test_the_choice_is_logged() -> None:
    kernel = made()
    with custom.using(Device(trusted=True)), settings.captured("kernel") as lines:
        kernel(X, Y, 2.0)
    assert lines == ["scaled_sum [(3,), (3,)]: one launch, a device: unmeasured: 1 launch to 3"]

"""Gradients of our softmax and log-softmax, MLX's transformations of them, and when they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metal_candle.kernels import custom
from metal_candle.kernels.kernel import Kernel
from metal_candle.kernels.softmax import log_softmax, softmax
from metal_candle.kernels.softmax_backward import softmax_backward
from metal_candle.kernels.softmax_launch import HELD, MANY

import mlx.core as mx
import numpy as np
import pytest
from exporting import Exporting
from launched import BACKWARD, DTYPES, assert_near, check, check_gradients, launched, normal

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dtypes
@pytest.mark.parametrize(
    "shape", [(7,), (3, 33), (2, 3, 301), (2, 3, 2, 131), (2, 600), (2, 4097), (1, HELD + 5)], ids=str
)
def test_gradients(device: str, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    x = normal(*shape, dtype=dtype)
    check_gradients(softmax, [x], 0.5, None)
    check_gradients(log_softmax, [x])


@dtypes
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("shape", [(1,), (3 * MANY + 1, 5), (2, 3, 301), (2, HELD + 9)], ids=str)
def test_the_backward_kernel(device: str, shape: tuple[int, ...], log: bool, dtype: mx.Dtype) -> None:
    y = mx.softmax(normal(*shape)) if not log else normal(*shape) - 3
    check(softmax_backward, [y.astype(dtype), normal(*shape, dtype=dtype, key=1)], -0.5, log)


@pytest.mark.parametrize("shape", [(3, 33), (2, 40)], ids=str)
def test_the_backward_kernels_own_gradients(device: str, shape: tuple[int, ...]) -> None:
    for log in (False, True):
        check_gradients(softmax_backward, [normal(*shape), normal(*shape, key=1)], 0.5, log)


def both(mask: mx.array, dtype: mx.Dtype) -> tuple[list[mx.array], list[mx.array]]:
    """The gradients of x and the mask: ours, and the definition's in float32."""
    x, g = normal(2, 3, 5, 33, dtype=dtype), normal(2, 3, 5, 33, dtype=dtype, key=1)
    launched(softmax, [x], 0.5, mask)
    found = softmax.vjp(g, [x], softmax.forward(x, 0.5, mask), (True, True), 0.5, mask)
    _, by_mlx = mx.vjp(lambda a, m: softmax(a, 0.5, m), [x, mask], [g])
    for one, other in zip(found, by_mlx):
        assert one is not None
        assert mx.array_equal(one, other)
    wide = [array.astype(mx.float32) for array in (x, mask, g)]
    return by_mlx, mx.vjp(lambda a, m: softmax.reference(a, 0.5, m), wide[:2], wide[2:])[1]


@dtypes
@pytest.mark.parametrize("shape", [(33,), (), (5, 33), (5, 1), (2, 1, 1, 33), (2, 3, 5, 33)], ids=str)
def test_the_gradient_of_a_mask(device: str, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    """A sum over what it was added to."""
    for of_mask in dict.fromkeys((dtype, mx.float32)):
        got, want = both(normal(*shape, dtype=of_mask, key=2), dtype)
        for i in range(2):
            # Cancelling terms: the sum is small beside them, so what counts is their size times their number's root.
            assert_near(got[i], want[i], BACKWARD[dtype], f"gradient {i} of a mask of {of_mask}")
        assert [gradient.dtype for gradient in got] == [dtype, of_mask]


def test_a_row_that_sees_nothing_has_no_gradient(device: str) -> None:
    """It is NaN, and so is what depends on it; x is not."""
    mask = mx.array([[True, False, True], [False, False, False]])
    x = normal(2, 3)
    got = mx.grad(lambda a: softmax(a, 0.5, mask).sum())(x)
    want = mx.grad(lambda a: softmax.reference(a, 0.5, mask).sum())(x)
    np.testing.assert_allclose(np.array(got), np.array(want), atol=1e-6)
    assert np.isfinite(np.array(got)).all()


def exact(x: Any, scale: float, mask: Any, log: bool) -> Any:
    scores = np.asarray(x, np.float64) * scale + mask
    shifted = scores - scores.max(-1, keepdims=True)
    return (
        shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        if log
        else np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    )


@pytest.mark.parametrize("log", [False, True])
def test_gradients_by_finite_differences(device: str, log: bool) -> None:
    """Central differences in float64, step 1e-5, whose own error is near 1e-10."""
    x, mask, g = normal(2, 3, 7), normal(3, 7, key=1), normal(2, 3, 7, key=2)
    places, scale = np.array(x, np.float64), 1.0 if log else -0.7
    added = 0.0 if log else np.array(mask, np.float64)
    slopes = np.zeros_like(places)
    for at in np.ndindex(places.shape):
        step = np.zeros_like(places)
        step[at] = 1e-5
        change = exact(places + step, scale, added, log) - exact(places - step, scale, added, log)
        slopes[at] = (change * np.array(g)).sum() / 2e-5
    function: Callable[[mx.array], mx.array] = log_softmax if log else lambda a: softmax(a, scale, mask)
    got = mx.grad(lambda a: (function(a) * g).sum())(x)
    np.testing.assert_allclose(np.array(got), slopes, rtol=1e-5, atol=1e-6)


CASES: dict[str, tuple[Kernel, tuple[Any, ...]]] = {
    "plain": (softmax, ()),
    "mask": (softmax, (0.5, normal(3, 9, key=5))),
    "causal": (softmax, (0.5, "causal")),
    "log": (log_softmax, ()),
}


@pytest.mark.parametrize("case", list(CASES))
def test_mlx_transformations(device: str, case: str) -> None:
    kernel, params = CASES[case]
    x, along = normal(4, 3, 9), normal(4, 3, 9, key=1)

    def loss(function: Callable[..., mx.array], a: mx.array) -> mx.array:
        return (function(a, *params) ** 2 * along[0]).sum()

    def each(function: Callable[..., mx.array]) -> list[mx.array]:
        def of_row(a: mx.array) -> mx.array:
            return loss(function, a)

        return [
            mx.grad(of_row)(x[0]),
            mx.grad(mx.checkpoint(of_row))(x[0]),
            mx.jvp(lambda a: function(a, *params), [x], [along])[1][0],
            mx.grad(lambda a: (mx.grad(of_row)(a) ** 2).sum())(x[0]),
        ]

    launched(kernel, [x], *params)
    for got, want in zip(each(kernel), each(kernel.reference), strict=True):
        assert_near(got, want, BACKWARD[mx.float32])


@pytest.mark.skipif(mx.cuda.is_available(), reason="the exported kernel is Metal's")
def test_it_can_be_exported(tmp_path: Path) -> None:
    """What it launches; MLX exports no function with gradients of its own."""
    x, mask, path = normal(3, 9), normal(9, key=1), tmp_path / "softmax.mlxfn"
    with custom.using(Exporting()):
        mx.export_function(str(path), lambda a, m: softmax.forward(a, 0.5, m)[0], x, mask)
    assert b"custom_kernel_softmax" in path.read_bytes()
    if mx.metal.is_available():
        got = mx.import_function(str(path))(x, mask)[0]
        assert_near(got, softmax.reference(x, 0.5, mask), BACKWARD[mx.float32])


class Counting:
    """A back-end that says what it would launch."""

    name = "a device"
    trusted = True

    def launch(self, program: custom.Program, inputs: Sequence[mx.array], how: custom.Launch) -> list[mx.array]:
        raise AssertionError(f"{program.name} is launched")


ONCE = "1 launch to 2, the scores read once to twice and written once to twice"
TWICE = "1 launch to 2, the scores read twice to three times and written once to twice"


@pytest.mark.parametrize(
    ("kernel", "shape", "params", "used", "why"),
    [
        (softmax, (8, 64), (), False, "1 launch to mx.softmax's 1, as many bytes"),
        (softmax, (8, 64), (0.5,), True, ONCE),
        (softmax, (8, HELD), (1.0, "causal"), True, ONCE),
        (softmax, (MANY - 1, HELD + 1), (0.5,), False, f"{MANY - 1} rows of {HELD + 1}, read twice"),
        (softmax, (MANY, HELD + 1), (0.5,), True, TWICE),
        (log_softmax, (8, 64), (), True, "1 launch to 2, x read once to twice"),
        (log_softmax, (1, 50_000), (), False, "1 rows of 50000, read twice"),
    ],
)
def test_the_rule(kernel: Kernel, shape: tuple[int, ...], params: tuple[Any, ...], used: bool, why: str) -> None:
    with custom.using(Counting()):
        kernel.choose(mx.zeros(shape), *params)
    assert kernel.last is not None
    name, reason = kernel.last
    assert (name == "one launch") is used
    assert reason.endswith(f"{'a device: ' if used else 'not one launch: '}unmeasured: {why}")


@pytest.mark.parametrize("log", [False, True])
def test_the_rule_of_the_gradient(log: bool) -> None:
    with custom.using(Counting()):
        softmax_backward.choose(mx.zeros((8, 64)), mx.zeros((8, 64)), 1.0, log)
        assert softmax_backward.last is not None
        assert softmax_backward.last[1].startswith(f"a device: unmeasured: 1 launch to {2 if log else 3}, ")
        softmax_backward.choose(mx.zeros((1, HELD + 1)), mx.zeros((1, HELD + 1)), 1.0, log)
        assert softmax_backward.last[0] == "reference"

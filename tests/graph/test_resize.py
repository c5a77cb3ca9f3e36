"""Nearest and bilinear resizing: against plain loops, PyTorch's values, NaN, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, Tolerance, assert_near
from weighted import run, weights

KINDS: list[Any] = [Tensor, LazyTensor]
Array = np.ndarray[Any, Any]


def nearest_matrix(size: int, target: int) -> Array:
    """Row i has a 1 where place i comes from, by exact fractions."""
    matrix = np.zeros((target, size))
    for i in range(target):
        matrix[i, min(size - 1, math.floor(Fraction(i * size, target)))] = 1.0
    return matrix


def bilinear_matrix(size: int, target: int, align_corners: bool, scale: float | None) -> Array:
    """Row i has the two weights of place i."""
    matrix = np.zeros((target, size))
    for i in range(target):
        if align_corners:
            at = i * (size - 1) / (target - 1) if target > 1 else 0.0
        else:
            at = max(0.0, (i + 0.5) * (size / target if scale is None else 1 / scale) - 0.5)
        low = min(int(at), size - 1)
        part = min(at - low, 1.0)
        matrix[i, low] += 1 - part
        matrix[i, min(low + 1, size - 1)] += part
    return matrix


def check(kind: Any, method: str, x: Array, arguments: Any, rows: Array, columns: Array) -> None:
    """Both dims are linear maps; the gradient is their transposes'."""
    y, grad = run(kind, method, x, *arguments)
    want = np.einsum("ih,bchw,jw->bcij", rows, x, columns)
    slope = np.einsum("ih,bcij,jw->bchw", rows, weights(want.shape), columns)
    assert (y.dtype, grad.dtype) == (x.dtype, x.dtype)
    # A gradient adds up to some hundred weights of size 3.
    near = VALUE[DType.F64] if x.dtype == np.float64 else Tolerance(2e-5, 2e-5)
    assert_near(y, want, near)
    assert_near(grad, slope, near)


IMAGES = st.tuples(st.integers(0, 2), st.integers(1, 2), st.integers(1, 7), st.integers(1, 7))
TARGETS = st.tuples(st.integers(0, 15), st.integers(0, 15))
DTYPES = st.sampled_from(["float32", "float64"])


def image(shape: tuple[int, ...], dtype: str) -> Array:
    return np.random.default_rng(0).uniform(-2, 2, shape).astype(dtype)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(KINDS), IMAGES, TARGETS, DTYPES)
def test_nearest_is_its_definition(kind: Any, shape: Any, target: Any, dtype: str) -> None:
    x = image(shape, dtype)
    rows, columns = nearest_matrix(shape[2], target[0]), nearest_matrix(shape[3], target[1])
    check(kind, "interpolate2d", x, target, rows, columns)
    # Of a row alone, and under its other name.
    y, grad = run(kind, "upsample_nearest1d", x[:, :, 0], target[1])
    assert_near(y, x[:, :, 0] @ columns.T, VALUE[DType.F64])
    assert_near(grad, weights(y.shape) @ columns, VALUE[DType.F64])


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(KINDS), IMAGES, TARGETS, st.booleans(), DTYPES)
def test_bilinear_is_its_definition(kind: Any, shape: Any, target: Any, align: bool, dtype: str) -> None:
    rows, columns = (bilinear_matrix(n, to, align, None) for n, to in zip(shape[2:], target))
    check(kind, "upsample_bilinear2d", image(shape, dtype), (*target, align), rows, columns)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(KINDS), IMAGES, st.tuples(*[st.floats(0.1, 3.0)] * 2), st.booleans(), DTYPES)
def test_bilinear_with_scale_steps_by_its_inverse(kind: Any, shape: Any, scale: Any, align: bool, dtype: str) -> None:
    target = tuple(math.floor(n * s) for n, s in zip(shape[2:], scale))
    rows, columns = (bilinear_matrix(n, to, align, s) for n, to, s in zip(shape[2:], target, scale))
    if target == shape[2:]:
        # The same size gives the same values, as in candle, whatever the scale.
        rows, columns = np.eye(target[0]), np.eye(target[1])
    check(kind, "upsample_bilinear2d_with_scale", image(shape, dtype), (*scale, align), rows, columns)


@pytest.mark.parametrize("kind", KINDS)
def test_known_values(kind: Any) -> None:
    x = kind.new(np.array([[[[1.0, 2.0], [3.0, 5.0]]]], np.float32))
    assert x.interpolate2d(3, 4).numpy().tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 5, 5]]]]
    assert x.upsample_nearest2d(1, 1).numpy().tolist() == [[[[1]]]]
    assert x.squeeze(0).interpolate1d(5).numpy().tolist() == [[[1, 1, 1, 2, 2], [3, 3, 3, 5, 5]]]
    # PyTorch 2.13.
    edges = [[1, 1.25, 1.75, 2], [2, 2.375, 3.125, 3.5], [3, 3.5, 4.5, 5]]
    corners = [[1, 4 / 3, 5 / 3, 2], [2, 2.5, 3, 3.5], [3, 11 / 3, 13 / 3, 5]]
    assert_near(x.upsample_bilinear2d(3, 4, False).numpy()[0, 0], edges, VALUE[DType.F32])
    assert_near(x.upsample_bilinear2d(3, 4, True).numpy()[0, 0], corners, VALUE[DType.F32])
    # The corners keep their values.
    large = x.upsample_bilinear2d_with_scale(10.5, 7.0, True).numpy()[0, 0]
    assert large.shape == (21, 14)
    assert large[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_of_pytorch(kind: Any) -> None:
    """PyTorch 2.13, float32: 3 x 4 halves of small integers, with scale_factor=(1.5, 1.3)."""
    x = ((np.arange(12) * 7 % 11 - 5) / 2).reshape(1, 1, 3, 4).astype(np.float32)
    y, grad = run(kind, "upsample_bilinear2d_with_scale", x, 1.5, 1.3, False)
    want = [
        *(-2.5, -0.211538, 0.153846, -0.326923, 2.365385, -1.0, -0.509615, 0.067308, 0.644231, 1.221154),
        *(0.083333, -0.625, 0.092949, 1.198718, -0.339744, -1.583333, 0.105769, 0.541667, -0.467949, -2.006411),
    ]
    slope = [
        *(-1.980769, 0.115385, -1.326923, 2.692308, -0.141026, 0.730769),
        *(0.025641, -2.115385, 1.50641, -0.538461, 1.26282, 0.769231),
    ]
    # The values are written down to six places.
    assert_near(y.ravel(), want, Tolerance(0, 2e-6))
    assert_near(grad.ravel(), slope, Tolerance(0, 2e-6))
    _, grad = run(kind, "interpolate2d", x, 4, 7)
    assert grad.ravel().tolist() == [-2, -4, 8, -2, -1, -2, 4, -1, -1, -2, 4, -1]


@pytest.mark.parametrize("target", [(5, 9), (12, 14), (3, 4), (6, 7), (1, 1)])
def test_the_same_as_pytorch_installed_here(target: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    x = image((2, 3, 6, 7), "float64")
    calls: list[tuple[str, Any, dict[str, Any]]] = [
        ("upsample_bilinear2d", (*target, align), {"size": target, "mode": "bilinear", "align_corners": align})
        for align in (False, True)
    ]
    scale = (target[0] / 6 + 0.05, target[1] / 7 + 0.05)
    if target != (6, 7):
        named = {"scale_factor": scale, "mode": "bilinear", "align_corners": False, "recompute_scale_factor": False}
        calls.append(("upsample_bilinear2d_with_scale", (*scale, False), named))
    calls.append(("interpolate2d", target, {"size": target, "mode": "nearest"}))
    for method, arguments, named in calls:
        a = torch.tensor(x, requires_grad=True)
        y = torch.nn.functional.interpolate(a, **named)
        (grad,) = torch.autograd.grad(y, a, torch.tensor(weights(tuple(y.shape))))
        got = run(Tensor, method, x, *arguments)
        assert_near(got[0], y.detach().numpy(), VALUE[DType.F64])
        assert_near(got[1], grad.numpy(), VALUE[DType.F64])


@pytest.mark.parametrize("kind", KINDS)
def test_places_are_reckoned_in_whole_numbers(kind: Any) -> None:
    """In floats ``3 · (7 / 21)`` may come out below 1; every third place starts a new element."""
    for size, factor in [(7, 3), (10, 49), (113, 3), (1000, 7)]:
        x = np.arange(size, dtype=np.float32).reshape(1, 1, size)
        np.testing.assert_array_equal(kind.new(x).interpolate1d(size * factor).numpy(), np.repeat(x, factor, axis=2))
    down = kind.new(np.arange(49, dtype=np.float32).reshape(1, 1, 49)).interpolate1d(7)
    assert down.numpy().ravel().tolist() == [0, 7, 14, 21, 28, 35, 42]


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_reach_their_neighbours_only(kind: Any) -> None:
    x = np.zeros((1, 1, 5, 5), np.float32)
    x[0, 0, 2, 2] = np.inf
    y = kind.new(x).upsample_bilinear2d(9, 9, True).numpy()[0, 0]
    assert np.isinf(y[3:6, 3:6]).all()
    y[3:6, 3:6] = 0
    assert (y == 0).all()
    # Of 7 rows the two at i with i · 5 // 7 = 2, 3 and 4.
    assert np.isinf(kind.new(x).interpolate2d(7, 5).numpy()).sum() == 2
    # The gradient too: an infinite one belongs to the elements that the place was made of.
    a = Var.zeros((1, 1, 5, 5), "f32", Device.Cpu)
    upstream = np.zeros((1, 1, 9, 9), np.float32)
    upstream[0, 0, 4, 4] = np.inf
    made = (a if kind is Tensor else LazyTensor.from_tensor(a)).upsample_bilinear2d(9, 9, True)
    grad = made.mul(kind.new(upstream, Device.Cpu)).sum_all().backward()[a].numpy()[0, 0]
    assert np.isinf(grad[2, 2])
    grad[2, 2] = 0
    assert (grad == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16], ids=str)
def test_halves_are_added_up_in_float32(kind: Any, dtype: DType) -> None:
    """A gradient of 4096 ones: a sum in float16 or bfloat16 would stop at 2048 or 256."""
    for target in (4096, 4097):
        for size in (1, 2):
            x = Var.zeros((1, 1, size), dtype, Device.Cpu)
            y = (x if kind is Tensor else LazyTensor.from_tensor(x)).interpolate1d(target)
            grad = y.backward()[x]
            assert grad.dtype is dtype
            assert abs(float(grad.numpy().sum()) / target - 1) < 2**-8
    x = Var.zeros((1, 1, 1, 1), dtype, Device.Cpu)
    assert float(x.upsample_bilinear2d(64, 64, False).backward()[x]) == 4096.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int16, np.int32, np.int64])
def test_nearest_keeps_integers(kind: Any, dtype: Any) -> None:
    x = kind.new(np.array([[[1, 2, 3]]], dtype))
    for target, want in [(6, [1, 1, 2, 2, 3, 3]), (4, [1, 1, 2, 3]), (2, [1, 2])]:
        y = x.interpolate1d(target)
        assert (y.dtype, y.numpy().ravel().tolist()) == (x.dtype, want)


@pytest.mark.parametrize("kind", KINDS)
def test_refused_when_recorded(kind: Any) -> None:
    x = kind.zeros((1, 2, 3, 5), "f32")
    for method, arguments, text in [
        ("interpolate2d", (-1, 2), "interpolate2d: got target_h -1; takes 0 or more"),
        ("upsample_nearest2d", (2, 1.5), "upsample_nearest2d: got target_w 1.5; takes an integer"),
        ("upsample_bilinear2d", (2, -3, True), "upsample_bilinear2d: got target_w -3"),
        ("upsample_bilinear2d_with_scale", (0.0, 1.0, True), "with_scale: got scale 0.0; takes a number above 0"),
        ("upsample_bilinear2d_with_scale", (1.0, math.inf, True), "with_scale: got scale inf"),
        ("upsample_bilinear2d_with_scale", (math.nan, 1.0, True), "with_scale: got scale nan"),
        ("upsample_bilinear2d_with_scale", ("2", 1.0, True), "with_scale: got '2' for scale_h; takes a number"),
        ("upsample_bilinear2d_with_scale", (1e300, 1.0, True), "takes sizes up to"),
        ("interpolate2d", (10**30, 1), "takes sizes up to"),
    ]:
        wrong_type = any(isinstance(n, str) or n == 1.5 for n in arguments)
        with pytest.raises(mc.error.ArgumentTypeError if wrong_type else mc.error.ShapeMismatchError, match=text):
            getattr(x, method)(*arguments)
    for method, arguments in [
        ("interpolate1d", (3,)),
        ("interpolate2d", (3, 3)),
        ("upsample_bilinear2d", (3, 3, True)),
        ("upsample_bilinear2d_with_scale", (2.0, 2.0, True)),
    ]:
        with pytest.raises(mc.error.UnexpectedNumberOfDimsError, match="got rank 2"):
            getattr(kind.zeros((3, 5), "f32"), method)(*arguments)
    with pytest.raises(mc.error.UnsupportedDTypeForOpError, match="upsample_bilinear2d: got dtype i64"):
        x.to_dtype("i64").upsample_bilinear2d(2, 2, False)
    with pytest.raises(mc.error.EmptyTensorError, match=r"interpolate2d: .* dim 2 is empty"):
        x.narrow(2, 0, 0).interpolate2d(2, 2)
    with pytest.raises(mc.error.EmptyTensorError, match=r"upsample_bilinear2d: .* dim 3 is empty"):
        x.narrow(3, 0, 0).upsample_bilinear2d(2, 2, False)

"""Pools over images: against plain loops, PyTorch's values, ties, NaN, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var
from metal_candle.kernels.choice import SMALL
from metal_candle.kernels.pool import ARRAYS, max_pool, max_pool_vjp
from metal_candle.kernels.windows import PIECE, Windows

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, assert_near
from weighted import run, weights

KINDS: list[Any] = [Tensor, LazyTensor]
METHODS = ["avg_pool2d_with_stride", "max_pool2d_with_stride"]
Array = np.ndarray[Any, Any]


def loops(
    method: str, x: Array, kernel: tuple[int, int], stride: tuple[int, int], upstream: Any
) -> tuple[Array, Array]:
    """The result window by window, and the gradient: to the first maximum, or in equal shares."""
    b, c, h, w = x.shape
    y = np.zeros((b, c, (h - kernel[0]) // stride[0] + 1, (w - kernel[1]) // stride[1] + 1))
    grad = np.zeros(x.shape)
    for n, ch, i, j in np.ndindex(*y.shape):
        rows = slice(i * stride[0], i * stride[0] + kernel[0])
        columns = slice(j * stride[1], j * stride[1] + kernel[1])
        seen, into = x[n, ch, rows, columns], grad[n, ch, rows, columns]
        share = upstream(y.shape)[n, ch, i, j]
        if method.startswith("avg"):
            y[n, ch, i, j] = seen.mean()
            into += share / seen.size
        else:
            y[n, ch, i, j] = seen.max()
            into[np.unravel_index(seen.argmax(), seen.shape)] += share
    return y, grad


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    channels=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    kernel=PAIRS,
    extra=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    numbers=st.lists(st.integers(-2, 2), min_size=1, max_size=30),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_values_and_gradients_are_those_of_the_definition(
    method: str, kind: Any, channels: Any, kernel: Any, extra: Any, stride: Any, numbers: Any, dtype: str
) -> None:
    """Few different numbers, so that most windows have several maxima."""
    shape = (*channels, kernel[0] + extra[0], kernel[1] + extra[1])
    x = np.resize(np.array(numbers, dtype), shape)
    y, grad = run(kind, method, x, kernel, stride)
    want, slope = loops(method, x, kernel, stride, weights)
    assert (y.dtype, grad.dtype, grad.shape) == (x.dtype, x.dtype, x.shape)
    near = VALUE[DType.F64 if dtype == "float64" else DType.F32]
    assert_near(y, want, near)
    assert_near(grad, slope, near)


@pytest.mark.parametrize("kind", KINDS)
def test_known_values(kind: Any) -> None:
    x = kind.new(np.array([[[[1, 2, 1, 3], [0, 0, 1, 1], [1, 1, 1, 1], [5, 1, 1, 1]]]], np.float32))
    assert x.avg_pool2d(2).numpy().tolist() == [[[[0.75, 1.5], [2.0, 1.0]]]]
    assert x.max_pool2d(2).numpy().tolist() == [[[[2.0, 3.0], [5.0, 1.0]]]]
    assert x.max_pool2d((4, 1)).numpy().tolist() == [[[[5.0, 2.0, 1.0, 3.0]]]]
    assert x.max_pool2d_with_stride((2, 2), 1).numpy().tolist() == [[[[2, 2, 3], [1, 1, 1], [5, 1, 1]]]]
    assert_near(x.avg_pool2d_with_stride(3, [1, 2]).numpy().ravel(), [8 / 9, 11 / 9], VALUE[DType.F32])
    # A row and a column that fill no window are dropped.
    assert tuple(x.narrow(2, 0, 3).narrow(3, 0, 3).max_pool2d(2).shape) == (1, 1, 1, 1)


# PyTorch 2.13, float32: windows of 3 x 2, stride (1, 2), on 4 x 5 halves of small integers.
TORCH = {
    "max_pool2d_with_stride": (
        [2.0, 2.5, 2.0, 2.0],
        [0, 0, 0, 2, 0, 0, -3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -2, 0, 0],
    ),
    "avg_pool2d_with_stride": (
        [-2 / 3, -1 / 12, -7 / 12, 0.0],
        [*(-0.5, -0.5, 1 / 3, 1 / 3, 0, -0.5, -0.5, 0, 0, 0), *(-0.5, -0.5, 0, 0, 0, 0, 0, -1 / 3, -1 / 3, 0)],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_values_and_gradients_of_pytorch(method: str, kind: Any) -> None:
    x = ((np.arange(20) * 7 % 11 - 5) / 2).reshape(1, 1, 4, 5).astype(np.float32)
    y, grad = run(kind, method, x, (3, 2), (1, 2))
    assert_near(y.ravel(), TORCH[method][0], VALUE[DType.F32])
    assert_near(grad.ravel(), TORCH[method][1], VALUE[DType.F32])


@pytest.mark.parametrize("seed", range(6))
def test_the_same_as_pytorch_installed_here(seed: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 3, (2, 3, 9, 8)).astype(np.float64)
    kernel, stride = (tuple(int(n) for n in rng.integers(1, 4, 2)) for _ in range(2))
    for method in METHODS:
        a = torch.tensor(x, requires_grad=True)
        y = getattr(torch.nn.functional, method.removesuffix("_with_stride"))(a, kernel, stride)
        (grad,) = torch.autograd.grad(y, a, torch.tensor(weights(tuple(y.shape))))
        got = run(Tensor, method, x, kernel, stride)
        assert_near(got[0], y.detach().numpy(), VALUE[DType.F64])
        assert_near(got[1], grad.numpy(), VALUE[DType.F64])


@pytest.mark.parametrize("kind", KINDS)
def test_of_equal_maxima_the_first_has_the_gradient(kind: Any) -> None:
    """Row by row; candle would give a quarter to each."""
    _, grad = run(kind, "max_pool2d", np.ones((1, 1, 2, 4)), 2)
    assert grad.tolist() == [[[[-3.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]]
    _, grad = run(kind, "max_pool2d", np.array([[[[0.0, 7.0], [7.0, 7.0]]]]), 2)
    assert grad.tolist() == [[[[0.0, -3.0], [0.0, 0.0]]]]
    # Zeros of both signs are equal.
    _, grad = run(kind, "max_pool2d", np.array([[[[-0.0, 0.0], [0.0, -0.0]]]]), 2)
    assert grad.tolist() == [[[[-3.0, 0.0], [0.0, 0.0]]]]


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity(kind: Any) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([[[[1, nan, -inf, -inf], [nan, 2, -inf, -inf], [inf, 1, 3, -inf], [1, inf, -inf, 2]]]])
    y, grad = run(kind, "max_pool2d", x, 2)
    np.testing.assert_array_equal(y, [[[[nan, -inf], [inf, 3]]]])
    assert grad.tolist() == [[[[0, -3, 2, 0], [0, 0, 0, 0], [0, 0, -2, 0], [0, 0, 0, 0]]]]
    _, grad = run(kind, "max_pool2d", np.array([[[[inf, 1.0], [nan, nan]]]]), 2)
    assert grad.tolist() == [[[[0, 0], [-3, 0]]]]
    y, _ = run(kind, "avg_pool2d", x, 2)
    np.testing.assert_array_equal(y, [[[[nan, -inf], [inf, -inf]]]])


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), [((2, 2), (2, 2)), ((3, 2), (2, 1))])
def test_large_arrays_are_computed_in_pieces(dtype: mx.Dtype, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
    """Each image and channel has the gradient that it has by itself, where it is small."""
    with mx.stream(mx.cpu):
        windows = Windows(kernel, stride, (1, 1), (0, 0))
        x = mx.array(np.random.default_rng(0).integers(-3, 3, (9, 16, 64, 64)), dtype)
        x[4, 1, :2, :2] = float("nan")
        assert x.size > PIECE // ARRAYS
        y = max_pool(x, windows)
        upstream = (mx.arange(y.size) % 5 - 2).reshape(y.shape).astype(dtype)
        upstream[3, 0, 0, 0] = float("inf")
        got = np.array(max_pool_vjp(upstream, x, y, windows).astype(mx.float32))
        for i, c in ((0, 0), (3, 0), (4, 1), (8, 15)):
            at = slice(i, i + 1), slice(c, c + 1)
            assert x[at].size < SMALL
            alone = max_pool_vjp(upstream[at], x[at], y[at], windows)
            np.testing.assert_array_equal(got[at], np.array(alone.astype(mx.float32)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16], ids=str)
def test_halves_are_added_up_in_float32(kind: Any, dtype: DType) -> None:
    """4096 numbers: a sum in float16 or bfloat16 would stop at 2048 or 256."""
    y = kind.ones((1, 1, 64, 64), dtype).avg_pool2d(64)
    assert (float(y), y.dtype) == (1.0, dtype)
    x = Var.zeros((1, 1, 1, 300), dtype, Device.Cpu)
    grad = (x if kind is Tensor else LazyTensor.from_tensor(x)).max_pool2d_with_stride((1, 300), 1)
    assert grad.backward()[x].numpy().sum() == 1.0
    # The middle element is in 300 windows, each of which gives it a 300th.
    row = Var.zeros((1, 1, 1, 599), dtype, Device.Cpu)
    shares = row.avg_pool2d_with_stride((1, 300), 1).backward()[row]
    assert shares.dtype is dtype
    assert abs(float(shares.numpy()[0, 0, 0, 299]) - 1.0) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int16, np.int32, np.int64])
def test_max_pool_keeps_integers(kind: Any, dtype: Any) -> None:
    x = kind.new(np.array([[[[1, 100], [3, 4]]]], dtype))
    y = x.max_pool2d(2)
    assert (y.dtype, y.numpy().tolist()) == (x.dtype, [[[[100]]]])


@pytest.mark.parametrize("kind", KINDS)
def test_refused_when_recorded(kind: Any) -> None:
    x = kind.zeros((1, 2, 3, 5), "f32")
    for name, (arguments, text) in itertools.product(
        ("avg_pool2d", "max_pool2d"),
        [
            ((4, 1), r"got shape \(1, 2, 3, 5\) and windows of \(4, 4\); takes windows no larger than \(h, w\)"),
            (((3, 6), 1), r"windows of \(3, 6\)"),
            ((0, 1), "got kernel_size 0; takes 1 or more"),
            ((2, 0), "got stride 0; takes 1 or more"),
            ((2, -1), "got stride -1"),
            (((2, 2, 2), 1), r"got kernel_size \(2, 2, 2\); takes an integer, or two"),
            ((1.5, 1), "got 1.5 for kernel_size; takes an integer or several"),
        ],
    ):
        expected = mc.error.ArgumentTypeError if "1.5" in text else mc.error.ShapeMismatchError
        with pytest.raises(expected, match=f"{name}_with_stride: .*{text}"):
            getattr(x, f"{name}_with_stride")(*arguments)
    with pytest.raises(mc.error.UnexpectedNumberOfDimsError, match="max_pool2d: got rank 3"):
        x.squeeze(0).max_pool2d(2)
    with pytest.raises(mc.error.UnsupportedDTypeForOpError, match="avg_pool2d: got dtype u32"):
        x.to_dtype("u32").avg_pool2d(2)

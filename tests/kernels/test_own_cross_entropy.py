"""The launches of cross entropy and of single log-probabilities: values, gradients, odd rows, what they do not take."""

from __future__ import annotations

from typing import Any

from metal_candle import LazyTensor, Tensor
from metal_candle.kernels import row_loss
from metal_candle.kernels.cross_entropy import cross_entropy
from metal_candle.kernels.kernel import Kernel
from metal_candle.kernels.picked_log_softmax import picked_log_softmax
from metal_candle.kernels.softmax_launch import HELD, MANY

import mlx.core as mx
import numpy as np
import pytest
from launched import BACKWARD, DTYPES, FORWARD, WIDTHS, assert_near, launched, normal, wide

Array = np.ndarray[Any, Any]

# From 8 rows on targets are no constant buffer of Metal's, which would be another instantiation; 9 leave rows over.
ROWS_AND_WIDTHS = [(9, n) for n in WIDTHS] + [(8, 33), (8, 1025), (8, 9001)]


def targets_of(x: mx.array, dtype: mx.Dtype = mx.int32) -> mx.array:
    return mx.random.randint(0, x.shape[-1], x.shape[:-1], key=mx.random.key(5)).astype(dtype)


def gradient_by_mlx(kernel: Kernel, x: mx.array, ids: mx.array, *params: float) -> mx.array:
    return mx.grad(lambda x: kernel.reference(x, ids, *params).sum())(x)


def assert_agrees(kernel: Kernel, x: mx.array, ids: mx.array, *params: float) -> None:
    """The launch's values and gradients against the definition's in float32, by both reverse modes."""
    launched(kernel, [x, ids], *params)
    outputs = kernel.forward(x, ids, *params)
    result = outputs[0]
    want = kernel.reference(wide(x), ids, *params)
    assert result.dtype == (x.dtype if kernel is picked_log_softmax else mx.float32)
    assert_near(result, want, FORWARD[result.dtype], "loss")
    if not np.isfinite(np.array(want)).all():
        return
    cotangent = normal(*result.shape, dtype=result.dtype, key=6)
    _, wanted = mx.vjp(lambda x: kernel.reference(x, ids, *params), [wide(x)], [wide(cotangent)])
    for given in (outputs, result):
        found, of_ids = kernel.vjp(cotangent, (x, ids), given, (True, False), *params)
        assert of_ids is None
        assert found is not None
        assert found.dtype == x.dtype
        assert_near(found, wanted[0], BACKWARD[x.dtype], "gradient")
    _, by_mlx = mx.vjp(lambda x: kernel(x, ids, *params), [x], [cotangent])
    assert_near(by_mlx[0], wanted[0], BACKWARD[x.dtype], "gradient by MLX")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), ROWS_AND_WIDTHS)
def test_losses(device: str, rows: int, n: int, dtype: mx.Dtype) -> None:
    x = normal(rows, n, dtype=dtype) * 3
    assert_agrees(cross_entropy, x, targets_of(x))
    if n < 1000 or dtype == mx.float32:
        assert_agrees(cross_entropy, x, targets_of(x), 0.1)
        assert_agrees(picked_log_softmax, x, targets_of(x)[:, None])


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 1), (2, 3, 33), (2, 2, 3, 5)], ids=str)
def test_leading_dims(device: str, shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    assert_agrees(cross_entropy, x, targets_of(x))
    assert_agrees(picked_log_softmax, x, targets_of(x)[..., None])


@pytest.mark.parametrize("dtype", [mx.uint32, mx.int64], ids=str)
def test_targets_of_any_integer(device: str, dtype: mx.Dtype) -> None:
    x = normal(9, 33)
    assert_agrees(cross_entropy, x, targets_of(x, dtype))


def test_views(device: str) -> None:
    x = normal(33, 18).T[::2]
    assert_agrees(cross_entropy, x, targets_of(x))
    many = mx.broadcast_to(mx.array([4, 1], mx.int32)[None], (5, 2))[:, 1]
    assert_agrees(cross_entropy, mx.broadcast_to(normal(1, 33), (5, 33)), many)


EXTREME = {
    "huge": [1e30, -1e30, 3e38, -3e38, 0.0],
    "tiny": [1e-38, -1e-38, 0.0, -0.0, 1e-45],
    "masked": [-np.inf, 1.0, -np.inf, 2.0, -np.inf],
    "nothing": [-np.inf] * 5,
    "infinite": [0.0, np.inf, 1.0, 2.0, 3.0],
    "nan": [0.0, np.nan, 1.0, np.inf, -np.inf],
}


@pytest.mark.parametrize("values", EXTREME.values(), ids=EXTREME)
@pytest.mark.parametrize("width", [5, 1030])
def test_extreme_rows(device: str, values: list[float], width: int) -> None:
    row = mx.array(values + [values[0]] * (width - len(values)))
    x = mx.broadcast_to(row, (5, width))
    ids = mx.arange(5)
    for kernel, given in ((cross_entropy, ids), (picked_log_softmax, ids[:, None])):
        launched(kernel, [x, given])
        got, want = kernel.forward(x, given)[0], kernel.reference(x, given)
        assert_near(got, want, FORWARD[mx.float32], kernel.name)


def test_the_gradient_of_a_masked_target(device: str) -> None:
    # A logsumexp found again from the loss and the target's logit would be lost.
    x = mx.array([[-1e30, 1.0, 2.0], [3.0, -mx.inf, 1.0]])
    ids = mx.array([0, 1])
    outputs = cross_entropy.forward(x, ids)
    found = cross_entropy.vjp(mx.ones(2), (x, ids), outputs, (True, False))[0]
    low, high = 1 / (1 + np.e), 1 / (1 + np.exp(-1.0))
    assert found is not None
    wanted = [[-1.0, low, high], [1 / (1 + np.exp(-2.0)), -1.0, 1 / (1 + np.exp(2.0))]]
    np.testing.assert_allclose(np.array(found), wanted, rtol=1e-6)


def test_large_logits_keep_their_digits(device: str) -> None:
    x = mx.array([[10_000.0, 10_001.0, 9_999.0]])
    near = np.array(cross_entropy.forward(x, mx.array([0]))[0])
    np.testing.assert_allclose(near, np.log(np.exp(-1.0) + 1 + np.exp(-2.0)) + 1, rtol=3e-7)
    same = mx.full((9, 33), 3e38)
    np.testing.assert_allclose(np.array(cross_entropy.forward(same, mx.arange(9))[0]), np.log(33.0), rtol=3e-7)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6, 1e29])
@pytest.mark.parametrize("n", [33, 1030])
def test_smoothing_keeps_the_digits_of_large_logits(device: str, n: int, offset: float) -> None:
    x = mx.round(normal(9, n) * 4) + offset
    ids = targets_of(x)
    exact = np.array(x).astype(np.float64)
    exact -= exact.max(-1, keepdims=True)
    picked = np.take_along_axis(exact, np.array(ids)[:, None], -1)[:, 0]
    want = np.log(np.exp(exact).sum(-1)) - 0.9 * picked - 0.1 * exact.mean(-1)
    for got in (cross_entropy.forward(x, ids, 0.1)[0], cross_entropy.reference(x, ids, 0.1)):
        np.testing.assert_allclose(np.array(got), want, rtol=2e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("values", EXTREME.values(), ids=EXTREME)
@pytest.mark.parametrize("width", [5, 1030])
def test_gradients_of_extreme_rows(device: str, values: list[float], width: int, smoothing: float) -> None:
    x = mx.broadcast_to(mx.array(values + [values[0]] * (width - len(values))), (6, width))
    ids = mx.array([0, 1, 2, 3, 4, width])  # the last names no class
    for kernel, given, params in (
        (cross_entropy, ids, (smoothing,)),
        (picked_log_softmax, ids[:, None], ()),
    ):
        outputs, ones = kernel.forward(x, given, *params), mx.ones(given.shape)
        found = kernel.vjp(ones, (x, given), outputs, (True, False), *params)[0]
        wanted = gradient_by_mlx(kernel, x, given, *params)
        assert found is not None
        assert_near(found, wanted, BACKWARD[mx.float32], kernel.name)
        if smoothing:
            assert_near(outputs[0], kernel.reference(x, given, *params), FORWARD[mx.float32], kernel.name)


def test_few_wide_rows_are_left_to_mlx() -> None:
    few, many = mx.zeros((1, HELD + 1)), mx.zeros((MANY, HELD + 1))
    assert row_loss.wins(few) == (False, f"unmeasured: 1 rows of {HELD + 1}, of which each is one threadgroup's")
    assert row_loss.wins(many)[0]
    assert "1 launch and pass over the logits to 1, with the gradient 2 and 3 to 3 and 4" in row_loss.wins(many)[1]
    assert row_loss.wins(mx.zeros((1, HELD)), 0.1)[0]


def test_an_id_outside_reads_nothing(device: str) -> None:
    x, ids = normal(4, 33), mx.array([33, -1, 2**31 - 1, 5])
    (loss, seen) = cross_entropy.forward(x, ids)
    assert np.isnan(np.array(loss)).tolist() == [True, True, True, False]
    found = cross_entropy.vjp(mx.ones(4), (x, ids), (loss, seen), (True, False))[0]
    assert found is not None
    np.testing.assert_array_equal(np.array(found)[:3], 0)
    assert np.array(found)[3].all()


@pytest.mark.parametrize("n", [33, 1030])
def test_rows_do_not_touch_each_other(device: str, n: int) -> None:
    x = mx.concatenate([normal(4, n), mx.full((1, n), mx.nan), normal(4, n, key=1)])
    losses = np.array(cross_entropy.forward(x, targets_of(x))[0])
    assert np.isnan(losses).tolist() == [False] * 4 + [True] + [False] * 4


def test_what_they_do_not_take(device: str) -> None:
    ids = mx.zeros((0,), mx.int32)
    assert cross_entropy.forward(mx.zeros((0, 5)), ids)[0].shape == (0,)
    assert cross_entropy.last is not None
    assert cross_entropy.last[0] == "reference"
    several = picked_log_softmax.forward(normal(3, 5), mx.zeros((3, 2), mx.int32))[0]
    assert several.shape == (3, 2)
    assert picked_log_softmax.last is not None
    assert "not one reading: several ids a row" in picked_log_softmax.last[1]
    assert row_loss.unfit(normal(3, 5), mx.zeros((3,)), (3,)) is not None
    assert row_loss.unfit(normal(3, 5), mx.zeros((2,), mx.int32), (2,)) is not None


def test_mlx_transformations(device: str) -> None:
    x, ids = normal(5, 33), mx.arange(5)

    def loss(x: mx.array) -> mx.array:
        return mx.square(cross_entropy(x, ids)).sum()

    def wanted(x: mx.array) -> mx.array:
        return mx.square(cross_entropy.reference(x, ids)).sum()

    for function in (loss, mx.checkpoint(loss)):
        assert_near(mx.grad(function)(x), mx.grad(wanted)(x), BACKWARD[mx.float32])
    second = mx.grad(lambda x: mx.square(mx.grad(loss)(x)).sum())(x)
    assert_near(second, mx.grad(lambda x: mx.square(mx.grad(wanted)(x)).sum())(x), BACKWARD[mx.float32])
    along = [normal(5, 33, key=3)]
    assert_near(mx.jvp(loss, [x], along)[1][0], mx.jvp(wanted, [x], along)[1][0], BACKWARD[mx.float32])


def test_a_spelled_out_loss_is_launched(device: str) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(7, 33)).astype(np.float32)
    ids = draw.integers(0, 33, (7, 1)).astype(np.uint32)

    def spelled() -> LazyTensor:
        return LazyTensor.from_tensor(Tensor(x)).log_softmax(-1).gather(Tensor(ids), 1)

    assert f"one reading, {device}: " in spelled().explain(None)
    got = spelled().eval().numpy()
    want = picked_log_softmax.reference(mx.array(x), mx.array(ids))
    np.testing.assert_allclose(got, np.array(want), rtol=1e-5, atol=1e-6)

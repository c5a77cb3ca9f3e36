"""Norms by our programs, with a sum before and without: against their definitions, on each back-end."""

from __future__ import annotations

import metal_candle as mc
from metal_candle import LazyTensor
from metal_candle.kernels import norm_launch
from metal_candle.kernels.add_layer_norm import add_layer_norm
from metal_candle.kernels.add_rms_norm import add_rms_norm
from metal_candle.kernels.layer_norm import layer_norm
from metal_candle.kernels.rms_norm import rms_norm

import mlx.core as mx
import numpy as np
import pytest
from launched import DTYPES, FORWARD, WIDTHS, assert_near, check, check_gradients, launched, normal
from norm_cases import EPS, NORMS, Norm

norms = pytest.mark.parametrize("norm", NORMS.values(), ids=list(NORMS))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPES = [(7,), (5, 33), (2, 3, 31), (2, 1, 5, 8), (9, 513)]


@norms
@dtypes
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(device: str, norm: Norm, width: int, dtype: mx.Dtype) -> None:
    check(norm.kernel, norm.operands((3, width), dtype), EPS)


@norms
@dtypes
def test_rows_wider_than_the_registers(device: str, norm: Norm, dtype: mx.Dtype) -> None:
    """What does not fit is read again."""
    check(norm.kernel, norm.operands((2, 16_384 + 5), dtype), EPS)


@norms
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ranks_with_and_without_what_is_beside(
    device: str, norm: Norm, shape: tuple[int, ...], dtype: mx.Dtype
) -> None:
    for given in range(norm.rows + 1):
        inputs = norm.operands(shape, dtype, given)
        check(norm.kernel, inputs, EPS)
        check_gradients(norm.kernel, inputs, EPS)


@pytest.mark.parametrize("norm", [NORMS["layer"], NORMS["add_layer"]], ids=["layer", "add_layer"])
def test_a_bias_without_a_weight(device: str, norm: Norm) -> None:
    inputs = norm.operands((3, 40), mx.float32)
    inputs[-2] = None
    check(norm.kernel, inputs, EPS)
    check_gradients(norm.kernel, inputs, EPS)


@norms
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9])
def test_threadgroups_that_have_not_all_their_rows(device: str, norm: Norm, rows: int) -> None:
    check(norm.kernel, norm.operands((rows, 13), mx.float32), EPS)


@norms
def test_gradients_of_wide_rows(device: str, norm: Norm) -> None:
    for dtype in DTYPES:
        check_gradients(norm.kernel, norm.operands((4, 1000), dtype), EPS)


@norms
def test_views(device: str, norm: Norm) -> None:
    """Transposed, every other row, rows repeated, and parts that begin where no wide load may."""
    rows = norm.operands((40,), mx.float16)[norm.tensors :]
    whole = norm.operands((80, 41), mx.float16)[: norm.tensors]
    square = norm.operands((40, 40), mx.float16)[: norm.tensors]
    flat = norm.operands((401,), mx.float16)[: norm.tensors]
    for tensors in (
        [x[::2, 1:] for x in whole],
        [x.T for x in square],
        [mx.broadcast_to(x[:1], (3, 40)) for x in square],
        [x[1:].reshape(10, 40) for x in flat],
    ):
        check(norm.kernel, [*tensors, *rows], EPS)
    check(norm.kernel, [*square, *[None if row is None else mx.broadcast_to(row[:1], (40,)) for row in rows]], EPS)


@norms
@dtypes
@pytest.mark.parametrize("value", [0.0, 1e-4, 60000.0, -60000.0, np.inf, -np.inf, np.nan])
def test_numbers_that_break_things(device: str, norm: Norm, value: float, dtype: mx.Dtype) -> None:
    """A whole row of it, and one place of a row of others: infinities and NaN come where the definition has them."""
    tensors = [mx.concatenate([x, x, x]) for x in norm.operands((1, 45), dtype)[: norm.tensors]]
    at = mx.arange(45) == 7
    odd = mx.stack([mx.full((45,), value), mx.where(at, value, 1.0), mx.ones((45,))]).astype(dtype)
    for place in range(norm.tensors):
        given = [odd if i == place else x for i, x in enumerate(tensors)]
        launched(norm.kernel, [*given, *norm.operands((45,), dtype)[norm.tensors :]], EPS)
        got = norm.kernel.forward(*given, *[None] * norm.rows, EPS)
        want = norm.kernel.reference(*given, *[None] * norm.rows, EPS)
        for one, other in zip(got, want if isinstance(want, tuple) else (want,)):
            a, b = (np.array(x.astype(mx.float32)) for x in (one, other))
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
            np.testing.assert_array_equal(np.isinf(a), np.isinf(b))
            if abs(value) > 1000 and norm.kernel in (layer_norm, add_layer_norm):
                # The mean's own rounding, 6e-8 of it, is as large as what is left of equal numbers.
                continue
            # Off by a rounding of the dtype: the sums are in another order.
            np.testing.assert_allclose(a, b, rtol=2**-7 if dtype == mx.bfloat16 else 2**-10, atol=1e-5)


@pytest.mark.parametrize("value", [1e30, -1e30])
def test_squares_that_overflow(device: str, value: float) -> None:
    """Float32's own range: the mean square is infinite, and the result 0, as in the definition."""
    x = mx.full((2, 40), value)
    assert not np.array(rms_norm.forward(x, None, EPS)[0]).any()
    assert not np.array(add_rms_norm.forward(x / 2, x / 2, None, EPS)[1]).any()


def test_a_mean_far_from_zero(device: str) -> None:
    """Mean 100, σ 1, float16: E[x²] - mean² would have an error of 4 beside the variance of 1."""
    x = (normal(5, 1000) + 100).astype(mx.float16)
    wide = np.array(x, np.float64)
    exact = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + EPS)
    launched(layer_norm, [x, None, None], EPS)
    np.testing.assert_allclose(np.array(layer_norm.forward(x, None, None, EPS)[0]), exact, rtol=2**-10, atol=2e-4)
    total, normed = add_layer_norm.forward(x / 2, x - x / 2, None, None, EPS)
    assert mx.array_equal(total, x)
    np.testing.assert_allclose(np.array(normed), exact, rtol=2**-10, atol=2e-4)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("width", [64, 301, 1000])
def test_halves_are_mlxs_bit_for_bit(device: str, width: int, dtype: mx.Dtype) -> None:
    """Rounded where MLX rounds: after the root, and after the weight."""
    weight = NORMS["rms"].operands((width,), dtype)[1]
    # Eighths up to 2: float32 holds the sums of their squares exactly, in whatever order they are added.
    x, residual = (mx.clip(mx.round(normal(16, width, key=i) * 8), -8, 8).astype(dtype) / 8 for i in range(2))
    for row in (weight, None):
        pairs = [(rms_norm.forward(x, row, EPS)[0], mx.fast.rms_norm(x, row, EPS))]
        total, normed = add_rms_norm.forward(x, residual, row, EPS)
        assert mx.array_equal(total, x + residual)
        pairs.append((normed, mx.fast.rms_norm(total, row, EPS)))
        for got, want in pairs:
            # MLX's root on a GPU may be off by a unit of float32, which few roundings to a half show.
            allowed = 0 if device == "emulator" else got.size // 500
            assert int(mx.sum(got != want)) <= allowed


@norms
def test_nothing_to_norm(device: str, norm: Norm) -> None:
    for shape in ((0, 5), (2, 0, 5)):
        inputs = norm.operands(shape, mx.float32)
        found = norm.kernel.forward(*inputs, EPS)[: norm.kernel.results]
        assert [tuple(each.shape) for each in found] == [shape] * norm.kernel.results
        assert norm.kernel.last is not None
        assert "no rows" in norm.kernel.last[1]


@norms
def test_what_the_programs_do_not_take(device: str, norm: Norm) -> None:
    x, *rest = norm.operands((4, 12), mx.float32)
    kernel = norm.kernel
    with mx.stream(mx.cpu):
        kernel.choose(*[None if a is None else a.astype(mx.float64) for a in (x, *rest)], EPS)
    assert kernel.last is not None
    assert "float64 is none of" in kernel.last[1]
    kernel.choose(x, *rest[:-1], mx.ones((12,), mx.float16), EPS)
    assert "[12] of mlx.core.float16 for [4, 12] of mlx.core.float32" in kernel.last[1]
    if norm.tensors == 2:
        kernel.choose(x, mx.ones((12,)), *rest[1:], EPS)
        assert "a residual [12]" in kernel.last[1]
        total, _ = kernel.forward(x, mx.ones((12,)), *rest[1:], EPS)[:2]
        assert_near(total, x + 1, FORWARD[mx.float32])


def test_more_rows_than_a_launch_takes() -> None:
    # Four rows of a simdgroup each make 32 threads along the grid's first axis.
    assert norm_launch.unfit_shape((2**28 - 128, 512), mx.float16) is None
    assert "more than one launch takes" in str(norm_launch.unfit_shape((2**28, 512), mx.float16))
    assert "more than one launch takes" in str(norm_launch.unfit_shape((2**22, 8192), mx.float16))


@pytest.mark.parametrize("width", [1, 64, 512, 513, 576, 4096, 8192, 8193, 16_384])
@pytest.mark.parametrize("rows", [1, 3, 4, 4097])
def test_launches(rows: int, width: int) -> None:
    """A simdgroup for a short row, else a threadgroup, as large as the row needs; the grid in whole threadgroups."""
    how = norm_launch.how((rows, width), mx.float16, True, True)
    (x, y, _), (threads, together, _) = how.grid, how.threadgroup
    assert threads % 32 == 0
    assert threads * together <= 512
    assert (threads == 32) == (width <= 512)
    assert together == (min(4, rows) if width <= 512 else 1)
    assert (x % threads, y) == (0, together)
    assert 0 <= x // threads * together - rows < together
    held = threads * 4 * norm_launch.CHUNKS
    assert width <= held or threads == norm_launch.MOST_THREADS
    assert how.shapes == ((rows, width),) * 2


def test_the_rule() -> None:
    """Sum and norm together by the count of launches and passes; a norm alone is left to MLX."""
    assert add_rms_norm.own is not None
    assert layer_norm.own is not None
    assert rms_norm.own is not None
    for width, used in ((64, True), (4096, True), (16_384, True), (16_385, False)):
        x = mx.zeros((2, width))
        wins, why = add_rms_norm.own.wins(x, x, None, EPS)
        assert wins is used
        assert why.startswith("unmeasured: ")
        assert rms_norm.own.wins(x, None, EPS)[0] is False
        assert layer_norm.own.wins(x, None, None, EPS)[0] is False


def test_explain_names_the_launch(device: str) -> None:
    x, residual = (LazyTensor.new(np.ones((4, 12), np.float32)) for _ in range(2))
    y = (x + residual).rms_norm(EPS)
    assert f"add_rms_norm [(4, 12), (4, 12)]: one launch, {device}: METAL_CANDLE_KERNELS=custom" in y.explain()
    assert isinstance(y, mc.LazyTensor)

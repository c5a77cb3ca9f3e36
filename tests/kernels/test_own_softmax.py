"""Our softmax and log-softmax against their definitions: widths, masks, numbers that break things."""

from __future__ import annotations

from typing import Any

from metal_candle.kernels.softmax import log_softmax, softmax
from metal_candle.kernels.softmax_launch import HELD, MANY, spread

import mlx.core as mx
import numpy as np
import pytest
from launched import DTYPES, FORWARD, WIDTHS, assert_near, check, launched, normal

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dtypes
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width(device: str, width: int, dtype: mx.Dtype) -> None:
    x = normal(3, width, dtype=dtype) * 3
    check(softmax, [x], -0.75, None)
    check(log_softmax, [x])


@dtypes
@pytest.mark.parametrize("width", [HELD - 1, HELD, HELD + 1, 50_000])
def test_rows_that_are_read_in_parts(device: str, width: int, dtype: mx.Dtype) -> None:
    """The highest element in the first part, and in the last."""
    for at in (2, width - 2):
        x = mx.where(mx.arange(width) == at, 9.0, normal(1, width)).astype(dtype)
        check(softmax, [x])
        check(log_softmax, [x])
    check(softmax, [x], 0.5, normal(width, key=3))


@dtypes
@pytest.mark.parametrize("shape", [(7,), (1, 1), (5, 7), (2, 3, 7), (2, 3, 2, 131), (2, 1, 2, 1, 3, 9)], ids=str)
def test_every_rank(device: str, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    x = normal(*shape, dtype=dtype)
    check(softmax, [x], 0.5, None)
    check(log_softmax, [x])


@pytest.mark.parametrize("rows", [2 * MANY - 1, 3 * MANY + 1])
def test_threadgroups_that_have_not_all_their_rows(device: str, rows: int) -> None:
    assert rows % spread(5, rows).together != 0 or spread(5, rows).together == 1
    check(softmax, [normal(rows, 5)], 0.5, normal(rows, 1, key=1))
    check(log_softmax, [normal(rows, 5)])


def test_what_lies_otherwise(device: str) -> None:
    square = normal(40, 41, dtype=mx.float16)
    flat = normal(401)
    for x in (
        square.T,
        square[::3, 1:],
        square[1:2, ::2],
        mx.broadcast_to(square[:1], (3, 41)),
        flat[1:].reshape(10, 40),
        normal(3, 5, 2, 36).swapaxes(1, 2),
    ):
        for mask in (None, normal(1, x.shape[-1], key=2) > -1):
            check(softmax, [x], 0.5, mask)
        check(log_softmax, [x])


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)], ids=str)
def test_nothing_is_left_to_the_definition(device: str, shape: tuple[int, ...]) -> None:
    for kernel in (softmax, log_softmax):
        kernel.choose(mx.zeros(shape))
        assert kernel.last is not None
        assert kernel.last[0] == "reference"
        assert kernel.last[1].endswith("not one launch: no elements")
    if shape[-1]:
        assert softmax(mx.zeros(shape), 0.5).shape == shape


@dtypes
@pytest.mark.parametrize("scale", [-2.5, 0.0, 1e-30, 3e4])
def test_scales(device: str, scale: float, dtype: mx.Dtype) -> None:
    check(softmax, [normal(5, 33, dtype=dtype)], scale, normal(33, key=4))


MASKS = [(33,), (1,), (), (5, 33), (5, 1), (3, 1, 33), (2, 1, 1, 33), (2, 1, 5, 33), (2, 3, 5, 33), (1, 3, 1, 1)]


@pytest.mark.parametrize("shape", MASKS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "of_mask"), [(d, m) for d in DTYPES for m in dict.fromkeys((d, mx.float32))], ids=str
)
def test_masks_that_are_added(device: str, shape: tuple[int, ...], dtype: mx.Dtype, of_mask: mx.Dtype) -> None:
    mask = mx.where(normal(*shape, key=5) > 1, -mx.inf, normal(*shape, key=6)).astype(of_mask)
    check(softmax, [normal(2, 3, 5, 33, dtype=dtype)], 0.5, mask)


@dtypes
@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_masks_that_hide(device: str, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    """What is hidden does not matter, be it NaN; a row that sees nothing is NaN."""
    mask = normal(*shape, key=7) > -0.3
    x = mx.where(mask, normal(2, 3, 5, 33), mx.nan).astype(dtype)
    check(softmax, [x], 0.5, mask)


def test_masks_are_read_where_they_lie(device: str) -> None:
    x, whole = normal(2, 3, 5, 36), normal(36, 5, key=8)
    for mask in (
        whole.T,
        normal(5, 80, key=8)[:, 3:75:2],
        mx.broadcast_to(normal(1, 36, key=8), (5, 36)),
        mx.broadcast_to(normal(5, 1, key=8), (2, 3, 5, 36)),
        normal(400, key=8)[7:187].reshape(5, 36),
        normal(3, 2, 5, 36, key=8).swapaxes(0, 1),
        normal(5, 36, key=8)[::-1],
        normal(2, 3, 5, 36, key=8)[::-1, :, ::-1, ::-1],
    ):
        check(softmax, [x], 0.5, mask)
        check(softmax, [x[:, ::-1, ::-1, ::-1]], 0.5, mask)
        check(softmax, [x], 0.5, mask > -0.5)


@dtypes
@pytest.mark.parametrize(("t", "s"), [(5, 9), (7, 7), (1, 33), (9, 5), (3, 600), (600, 3), (2, HELD + 7)])
def test_causal(device: str, t: int, s: int, dtype: mx.Dtype) -> None:
    check(softmax, [normal(2, t, s, dtype=dtype)], 0.5, "causal")


def test_what_causal_hides_is_not_looked_at(device: str) -> None:
    x, hidden = normal(2, 9, 30), mx.arange(30)[None] > mx.arange(9)[:, None] + 21
    expected = softmax.reference(x, 0.5, "causal")
    launched(softmax, [mx.where(hidden, mx.nan, x)], 0.5, "causal")
    got = softmax.forward(mx.where(hidden, mx.nan, x), 0.5, "causal")[0]
    assert_near(got, expected, FORWARD[mx.float32])
    assert not np.array(mx.where(hidden, got, 0)).any()


NUMBERS = (0.0, 6e4, -6e4, 3e38, -3e38, 1e-30, np.inf, -np.inf, np.nan)


@dtypes
@pytest.mark.parametrize("width", [5, 45, 600])
def test_numbers_that_break_things(device: str, width: int, dtype: mx.Dtype) -> None:
    """Whole rows of one number, one among others, and two of them: as ``mx.softmax(precise=True)``."""
    rows = [np.full(width, number) for number in NUMBERS]
    for number in NUMBERS:
        for at in {0, width // 2, width - 1}:
            rows.append(np.where(np.arange(width) == at, number, np.linspace(-2, 2, width)))
    rows += [np.where(np.arange(width) % 2, a, b) for a, b in ((np.inf, -np.inf), (np.inf, 1.0), (3e38, -3e38))]
    x = mx.array(np.stack(rows).astype(np.float32)).astype(dtype)
    launched(softmax, [x])
    wide = x.astype(mx.float32)
    assert_near(softmax.forward(x)[0], mx.softmax(wide, axis=-1, precise=True), FORWARD[dtype])
    check(softmax, [x], 1.0, mx.zeros(width))
    check(log_softmax, [x])


def test_far_numbers_of_a_log_softmax(device: str) -> None:
    """Where the softmax is 0 in float32 its logarithm is still a number."""
    x = mx.array([[0.0, -300.0, 200.0], [3e38, -3e38, 0.0]])
    got = np.array(log_softmax(x))
    np.testing.assert_allclose(got, [[-200.0, -500.0, 0.0], [0.0, -np.inf, -3e38]], rtol=1e-6)


def test_halves_are_summed_in_float32(device: str) -> None:
    """5,000 equal terms of float16: a sum in float16 would stop at 2,048."""
    x = mx.zeros((2, 5000), mx.float16)
    launched(softmax, [x])
    np.testing.assert_allclose(np.array(softmax(x)), 1 / 5000, rtol=2**-11)


@pytest.mark.parametrize(
    ("x", "arguments", "reason"),
    [
        (mx.zeros((3, 4), mx.int32), (), "mlx.core.int32"),
        (mx.zeros((1,) * 11), (), "11 dims"),
        (mx.zeros(4), (1.0, "causal"), "a causal mask of one dim"),
        (mx.zeros((3, 4)), (1.0, mx.zeros((3, 4), mx.int32)), "a mask of mlx.core.int32"),
        (mx.zeros((1, 4)), (1.0, mx.zeros((3, 1))), "a mask [3, 1], to which [1, 4] would be broadcast"),
        (mx.zeros(4), (1.0, mx.zeros((2, 4))), "a mask [2, 4], to which [4] would be broadcast"),
        (mx.broadcast_to(mx.zeros(()), (2**27, 1)), (), "134217728 rows, more threads than a grid has"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_does_not_take(device: str, x: mx.array, arguments: tuple[Any, ...], reason: str) -> None:
    variant = softmax.choose(x, *arguments)
    assert not softmax.launches(variant)
    assert softmax.last is not None
    assert softmax.last[1].endswith(f"not one launch: {reason}")

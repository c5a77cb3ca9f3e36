"""The launch of the rotary embedding: both layouts, strides, gradients, what it does not take."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from metal_candle import LazyTensor, Tensor, features
from metal_candle.kernels import custom
from metal_candle.kernels.rope import HEADS, PROGRAM, _launch, rope

import mlx.core as mx
import numpy as np
import pytest
from exporting import Exporting
from launched import BACKWARD, DTYPES, FORWARD, assert_near, check, check_gradients, normal, wide

SHAPES = [
    (2, 3, 5, 8),  # batch, heads, odd positions
    (1, 9, 1, 64),  # decode, heads not a multiple of a thread's
    (3, HEADS + 1, 7, 2),  # one pair
    (2, 1, 33, 6),  # an odd number of pairs
    (1, 2, 31, 66),  # more pairs than a threadgroup
    (5, 10),  # no heads
    (3, 5, 10),
    (2, 2, 3, 5, 6),  # more dims than the launch has
    (1, 1, 1, 2),  # fewer elements than a buffer that Metal counts as constant
]


def tables(shape: tuple[int, ...], dtype: mx.Dtype = mx.float32) -> tuple[mx.array, mx.array]:
    angles = normal(shape[-2], shape[-1] // 2, key=7) * 9
    return mx.cos(angles).astype(dtype), mx.sin(angles).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(device: str, shape: tuple[int, ...], interleaved: bool, dtype: mx.Dtype) -> None:
    inputs = [normal(*shape, dtype=dtype), *tables(shape, dtype)]
    check(rope, inputs, interleaved)
    check_gradients(rope, inputs, interleaved)


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: mx.swapaxes(x, 1, 2),  # heads of a projection
        lambda x: mx.swapaxes(x, -1, -2),
        lambda x: mx.swapaxes(x, 1, 2)[:, ::2, 1:, 2:],
        lambda x: mx.broadcast_to(x[:, :1], (2, 5, 7, 12)),
        lambda x: mx.swapaxes(x, 1, 2)[::-1, ::-2, ::-1, ::-1],
    ],
    ids=["heads", "transposed", "part", "broadcast", "reversed"],
)
def test_views_are_read_where_they_are(device: str, view: Callable[[mx.array], mx.array], interleaved: bool) -> None:
    x = view(normal(2, 6, 7, 12) if view(mx.zeros((2, 6, 7, 12))).shape[-1] % 2 == 0 else normal(2, 6, 8, 12))
    wide_tables = tables((2 * x.shape[2], 2 * x.shape[3]))
    cos, sin = (table[1::2, : x.shape[3] // 2] for table in wide_tables)
    check(rope, [x, cos, sin], interleaved)
    check(rope, [x, cos[::-1, ::-1], sin[::-1, ::-1]], interleaved)
    check_gradients(rope, [x, cos, sin], interleaved)


def test_extreme_numbers(device: str) -> None:
    x = mx.array([[3e38, -3e38, 1e-38, 0.0, mx.inf, mx.nan, -mx.inf, 1.0, 2.0, 3.0]])
    angle = mx.array([[0.5, 1.5, 0.0, 2.0, 3.0]])
    for interleaved in (False, True):
        check(rope, [x, mx.cos(angle), mx.sin(angle)], interleaved)
    half = mx.array([[65504.0, 60000.0, 6e-8, 1.0]], mx.float16)
    cos, sin = mx.array([[0.6, 1.0]], mx.float16), mx.array([[0.8, 0.0]], mx.float16)
    check(rope, [half, cos, sin])


def test_halves_are_turned_in_float32(device: str) -> None:
    x = normal(1, 3, 9, 16, dtype=mx.bfloat16)
    cos, sin = tables(x.shape, mx.bfloat16)
    exact = rope.reference(wide(x), wide(cos), wide(sin))
    (got,) = rope.forward(x, cos, sin)
    assert bool((got == exact.astype(mx.bfloat16)).all())


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (((1, 2, 0, 4), (0, 2), (0, 2)), "no elements"),
        (((0, 2, 3, 4), (3, 2), (3, 2)), "no elements"),
        (((2, 3, 4), (1, 2), (1, 2)), r"x \(2, 3, 4\), tables \(1, 2\) and \(1, 2\)"),
        (((4,), (1, 2), (1, 2)), r"x \(4,\), tables"),
    ],
    ids=str,
)
def test_what_it_does_not_take_the_reference_computes(
    device: str, shapes: tuple[tuple[int, ...], ...], says: str
) -> None:
    inputs = [normal(*shape, key=key) for key, shape in enumerate(shapes)]
    assert bool(mx.array_equal(rope.forward(*inputs)[0], rope.reference(*inputs)))
    assert rope.last is not None
    assert rope.last[0] == "composition"
    np.testing.assert_string_equal(rope.last[1].split(";")[0], "the same operations, gradient by turning back")
    assert re.search(says, rope.last[1])


def test_tables_of_another_dtype_are_left_to_mlx(device: str) -> None:
    x, (cos, sin) = normal(1, 2, 3, 4, dtype=mx.bfloat16), tables((3, 4))
    assert rope.forward(x, cos, sin)[0].dtype == mx.float32
    assert rope.last is not None
    assert "x of mlx.core.bfloat16, tables of mlx.core.float32" in rope.last[1]


def test_mlx_transformations(device: str) -> None:
    x = normal(2, 3, 5, 8)
    cos, sin = tables(x.shape)

    def loss(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        return mx.square(rope(x, cos, sin)).sum() + (rope(x, cos, sin) * mx.arange(8)).sum()

    def wanted(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        return mx.square(rope.reference(x, cos, sin)).sum() + (rope.reference(x, cos, sin) * mx.arange(8)).sum()

    every = (0, 1, 2)
    for function in (loss, mx.checkpoint(loss)):
        found = mx.grad(function, argnums=every)(x, cos, sin)
        for got, want in zip(found, mx.grad(wanted, argnums=every)(x, cos, sin)):
            assert_near(got, want, BACKWARD[mx.float32])
    along = [normal(*x.shape, key=5), mx.zeros_like(cos), mx.zeros_like(sin)]
    for got, want in zip(mx.jvp(loss, [x, cos, sin], along)[1], mx.jvp(wanted, [x, cos, sin], along)[1]):
        assert_near(got, want, BACKWARD[mx.float32])
    with features.disabled("custom-metal"):  # MLX batches no launch
        batched = mx.vmap(lambda one: rope(one, cos, sin))(x)
        assert_near(batched, rope.reference(x, cos, sin), FORWARD[mx.float32])


def test_it_can_be_exported_without_a_gpu(tmp_path: Path) -> None:
    x = normal(2, 3, 5, 8)
    how = _launch(x.shape, x.shape, x.dtype, False)

    def launch(x: mx.array, cos: mx.array, sin: mx.array) -> list[mx.array]:
        return Exporting().launch(PROGRAM, [x, cos, sin, custom.scalar(1.0)], how)

    path = tmp_path / "rope.mlxfn"
    mx.export_function(str(path), launch, x, *tables(x.shape))
    assert PROGRAM.body.encode() in path.read_bytes()


def test_a_spelled_out_embedding_is_launched(device: str) -> None:
    draw = np.random.default_rng(0)
    x, cos, sin = (Tensor(draw.uniform(-1, 1, shape).astype(np.float32)) for shape in ((2, 3, 5, 8), (5, 4), (5, 4)))

    def spelled() -> LazyTensor:
        lazy = [LazyTensor.from_tensor(each) for each in (x, cos, sin)]
        a, b = lazy[0].chunk(2, -1)
        return LazyTensor.cat([a * lazy[1] - b * lazy[2], a * lazy[2] + b * lazy[1]], -1)

    y = spelled()
    assert f"one launch, {device}: " in y.explain(None)
    got = spelled().eval().numpy()
    assert rope.last == ("one launch", f"{device}: METAL_CANDLE_KERNELS=custom")
    want = rope.reference(*[mx.array(each.numpy()) for each in (x, cos, sin)])
    np.testing.assert_allclose(got, np.array(want), rtol=1e-5, atol=1e-6)

"""The order of the products of a low-rank update: the fewest multiplications, counted as they are done."""

from __future__ import annotations

from itertools import product
from typing import Any

from metal_candle.kernels import fused_lora
from metal_candle.kernels.fused_lora import add_lora, lora
from metal_candle.kernels.lora_order import (
    THROUGH_RANK,
    Order,
    is_low,
    merging_is_cheaper,
    multiplications,
    order_of_gradients,
)

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launched import BACKWARD, FORWARD, assert_near, normal

NEEDS = [needs for needs in product((False, True), repeat=3) if any(needs)]
ORDERS = [Order(*each) for each in product((True, False), repeat=3)]
# rows, width, rank, out: ranks of adapters, then ranks near or above the widths.
SIZES = [(5, 40, 4, 36), (64, 8, 6, 9), (3, 8, 20, 9), (50, 7, 20, 5), (9, 6, 6, 30), (40, 30, 16, 4), (1, 5, 9, 5)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where the multiplications of each product are added."""
    counts: list[int] = []
    matmul, addmm = fused_lora.matmul, fused_lora.addmm

    def counting_matmul(a: mx.array, b: mx.array) -> mx.array:
        counts.append(a.shape[0] * a.shape[1] * b.shape[1])
        return matmul(a, b)

    def counting_addmm(c: mx.array, a: mx.array, b: mx.array, **scales: float) -> mx.array:
        counts.append(a.shape[0] * a.shape[1] * b.shape[1])
        return addmm(c, a, b, **scales)

    monkeypatch.setattr(fused_lora, "matmul", counting_matmul)
    monkeypatch.setattr(fused_lora, "addmm", counting_addmm)
    return counts


def operands(rows: int, width: int, rank: int, out: int) -> list[mx.array]:
    """base, x, A and B."""
    shapes = ((rows, out), (rows, width), (width, rank), (rank, out))
    return [normal(*shape, key=key) for key, shape in enumerate(shapes)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_result_takes_the_fewest(counted: list[int], sizes: tuple[int, int, int, int]) -> None:
    rows, width, rank, out = sizes
    base, x, a, b = operands(*sizes)
    fewest = min(rows * rank * (width + out), width * out * (rank + rows))
    for kernel, inputs, added in ((lora, (x, a, b), 0), (add_lora, (base, x, a, b), base)):
        counted.clear()
        (got,) = kernel.forward(*inputs, 0.5)
        assert sum(counted) == fewest
        assert_near(got, added + 0.5 * (x @ a) @ b, FORWARD[mx.float32])
    assert merging_is_cheaper(*sizes) == (lora.choose(x, a, b, 0.5).name == "factors first")


@pytest.mark.parametrize("needs", NEEDS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradients_take_the_fewest(
    counted: list[int], sizes: tuple[int, int, int, int], needs: tuple[bool, ...]
) -> None:
    _, x, a, b = operands(*sizes)
    upstream = normal(sizes[0], sizes[3], key=9)
    found = lora.vjp(upstream, (x, a, b), None, needs, 0.5)
    assert sum(counted) == min(multiplications(order, *sizes, needs) for order in ORDERS)
    wanted = mx.vjp(lambda x, a, b: 0.5 * (x @ a) @ b, [x, a, b], [upstream])[1]
    for got, want, need in zip(found, wanted, needs):
        assert (got is not None) == need
        if got is not None:
            assert_near(got, want, BACKWARD[mx.float32])


def test_the_order_flips_where_the_rank_exceeds_the_widths() -> None:
    every = (True, True, True)
    assert order_of_gradients(512, 1024, 16, 1024, every) == THROUGH_RANK
    assert order_of_gradients(512, 64, 256, 64, every) == Order(False, False, False)
    assert not merging_is_cheaper(512, 1024, 16, 1024)
    assert merging_is_cheaper(512, 64, 256, 64)
    assert not merging_is_cheaper(1, 64, 256, 64)  # the product of the factors costs more than one row saves


@settings(deadline=None, max_examples=300)
@given(*[st.integers(1, 4096)] * 4)
def test_no_other_order_is_cheaper_at_a_low_rank(rows: int, width: int, rank: int, out: int) -> None:
    rank = 1 + rank % max(1, min(width, out) // 4)
    if is_low(width, rank, out):
        assert not merging_is_cheaper(rows, width, rank, out)
        for needs in NEEDS:
            assert order_of_gradients(rows, width, rank, out, needs) == THROUGH_RANK


def test_float16_always_goes_through_the_rank() -> None:
    # A · B leaves float16's range, x · A does not, nor does the result.
    x, a, b = mx.full((64, 4), 1e-3, mx.float16), mx.full((4, 8), 300.0, mx.float16), mx.full((8, 4), 300.0, mx.float16)
    assert merging_is_cheaper(64, 4, 8, 4)
    (got,) = lora.forward(x, a, b, 0.5)
    want: Any = 0.5 * 4 * 1e-3 * 300 * 8 * 300
    # x is rounded to 2^-11 of it, as is the result.
    np.testing.assert_allclose(np.array(got), want, rtol=2e-3)
    of_x, of_a, of_b = lora.vjp(mx.full((64, 4), 1e-3, mx.float16), (x, a, b), None, (True, True, True), 0.5)
    for gradient in (of_x, of_a, of_b):
        assert gradient is not None
        assert bool(mx.isfinite(gradient).all())


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_tangents_have_the_scale(dtype: mx.Dtype) -> None:
    """MLX's own, of ``mx.addmm``, leave it out."""
    for sizes in SIZES:
        arrays = [array.astype(dtype) for array in operands(*sizes)]
        got, want = (
            mx.jvp(lambda *a: function(*a, 0.5), arrays, arrays)[1][0]  # noqa: B023
            for function in (add_lora, add_lora.reference)
        )
        assert_near(got, want, BACKWARD[dtype])

"""Values that single lines of our programs are for: each test fails where one of them is left out or bent."""

from __future__ import annotations

from metal_candle.kernels.cross_entropy import cross_entropy
from metal_candle.kernels.fused_lora import add_lora
from metal_candle.kernels.rms_norm import rms_norm
from metal_candle.kernels.rope import rope
from metal_candle.kernels.softmax import log_softmax
from metal_candle.kernels.softmax_backward import softmax_backward

import mlx.core as mx
import numpy as np
import pytest
from launched import check, launched, normal
from norm_cases import NORMS, Norm

F32 = mx.float32
norms = pytest.mark.parametrize("norm", NORMS.values(), ids=list(NORMS))


@norms
@pytest.mark.parametrize("eps", [0.0, 1e-2, 1.0])
def test_eps_is_the_callers(device: str, norm: Norm, eps: float) -> None:
    check(norm.kernel, norm.operands((3, 35), F32), eps)


@norms
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
def test_rows_that_are_not_held_and_end_in_three(device: str, norm: Norm, dtype: mx.Dtype) -> None:
    check(norm.kernel, norm.operands((2, 8195), dtype), 1e-5)
    check(norm.kernel, norm.operands((2, 12_291), dtype), 1e-5)


@pytest.mark.parametrize("width", [1003, 9003])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_a_norm_is_rounded_before_its_weight_and_a_sum_before_its_norm(
    device: str, dtype: mx.Dtype, width: int
) -> None:
    """Bit for bit what the operations one after another give, where float32's own order of sums does not matter."""
    x, residual, weight = (normal(3, width, dtype=dtype, key=key) for key in range(3))
    norm = NORMS["add_rms"].kernel
    launched(norm, [x, residual, weight[0]], 1e-5)
    total, normed = norm.forward(x, residual, weight[0], 1e-5)[:2]
    assert total.tolist() == (x + residual).tolist()
    for got, of in ((normed, x + residual), (rms_norm.forward(x, weight[0], 1e-5)[0], x)):
        wide = np.array(of.astype(F32), np.float64)
        scaled = wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + 1e-5)
        want = mx.array(scaled.astype(np.float32)).astype(dtype) * weight[0]
        # A product that lies between two halves may be rounded either way, one of thousands: the root is float32's.
        assert float(mx.mean((got != want).astype(F32))) < 2e-3


@pytest.mark.parametrize("interleaved", [False, True])
def test_tables_of_two_layouts(device: str, interleaved: bool) -> None:
    x, cos, sin = normal(1, 3, 5, 16), normal(5, 8, key=1), normal(8, 5, key=2).T
    check(rope, [x, cos, sin], interleaved)
    check(rope, [x, sin, cos], interleaved)
    check(rope, [x, normal(5, 16, key=3)[:, ::2], sin], interleaved)
    check(rope, [x, normal(10, 8, key=3)[::2], cos], interleaved)


def test_losses_of_logits_that_are_all_far_below_zero(device: str) -> None:
    """A maximum that began at 0 would leave a sum of nothing."""
    for width in (1027, 9001):
        x = normal(3, width) - 500
        check(cross_entropy, [x, mx.array([0, 5, width - 1])], 0.0)
        check(cross_entropy, [x, mx.array([0, 5, width - 1])], 0.1)


@pytest.mark.parametrize("log", [False, True])
def test_the_gradient_of_a_row_in_three_parts(device: str, log: bool) -> None:
    y = mx.softmax(normal(2, 20_003))
    check(softmax_backward, [mx.log(y) if log else y, normal(2, 20_003, key=1)], 0.5, log)


@pytest.mark.parametrize("rank", [129, 160, 192])
@pytest.mark.parametrize("transposed", [False, True])
def test_an_update_whose_ranks_are_more_than_two_blocks(device: str, rank: int, transposed: bool) -> None:
    """A of 4,096 numbers a thread's share and more, so that ranks and columns are shared out among simdgroups."""
    for rows in (1, 3):
        base, x, b = normal(rows, 41), normal(rows, 97, key=1) / 10, normal(rank, 41, key=3) / 10
        a = normal(rank, 97, key=2).T if transposed else normal(97, rank, key=2)
        check(add_lora, [base, x, a, b], 0.5)


def test_log_softmax_of_rows_around_ten_thousand(device: str) -> None:
    """The maximum is subtracted first: a logarithm added to it would be rounded to the spacing there, 1e-3."""
    x = 1e4 + normal(3, 601)
    launched(log_softmax, [x])
    wide = np.array(x, np.float64)
    want = wide - wide.max(-1, keepdims=True)
    want -= np.log(np.exp(want).sum(-1, keepdims=True))
    np.testing.assert_allclose(np.array(log_softmax.forward(x)[0]), want, rtol=1e-6, atol=1e-5)

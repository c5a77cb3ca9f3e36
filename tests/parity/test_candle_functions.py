"""The functions and operators of candle's own Python binding beside ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from metal_candle import DType, LazyTensor, Tensor

import pytest
from both import KINDS, Case, agree, candle, counted, f32, u32, zeros

functional = pytest.importorskip("candle.functional")
INF, NAN = float("inf"), float("nan")
A, B = f32([[1.0, -2.0, 0.5], [4.0, 0.25, -0.0]]), f32([[2.0, 3.0, -1.0], [0.5, 8.0, 7.0]])
ROW, POSITIVE = f32([1.0, 2.0, 4.0]), f32([[1.0, 2.0], [0.5, 9.0]])
PLANES = counted(2, 3, 4, 5)


@pytest.mark.parametrize(
    "case",
    [
        *[
            Case(lambda t, o, d=dim: candle.cat([t, o], d), (A, B), lambda t, o, d=dim: type(t).cat([t, o], d))
            for dim in range(-2, 3)
        ],
        *[
            Case(lambda t, o, d=dim: candle.stack([t, o], d), (A, B), lambda t, o, d=dim: type(t).stack([t, o], d))
            for dim in (0, 1, 2, 3)
        ],
        *[
            Case(lambda t, o: candle.cat([t, o], 0), pair, lambda t, o: type(t).cat([t, o], 0))
            for pair in [(A, ROW), (A, POSITIVE), (f32([1.0]), u32([1])), (zeros(0, 3), A)]
        ],
        Case(lambda t, o: candle.stack([t, o], 0), (A, ROW), lambda t, o: type(t).stack([t, o], 0)),
        Case(lambda t: candle.cat([], 0), (A,), lambda t: type(t).cat([], 0)),
        Case(lambda t: candle.stack([], 0), (A,), lambda t: type(t).stack([], 0)),
        *[
            Case(lambda t, d=dim: functional.softmax(t, d), (A,), lambda t, d=dim: t.softmax(d), 8)
            for dim in (-1, 0, 1, 2)
        ],
        Case(lambda t: functional.softmax(t, 0), (f32([-INF, -INF]),), lambda t: t.softmax(0)),
        Case(lambda t: functional.softmax(t, 0), (f32([1e30, -1e30, NAN]),), lambda t: t.softmax(0)),
        Case(functional.silu, (A,), lambda t: t.silu(), 4),
        # 1 + erf loses to cancellation.
        Case(functional.gelu, (A,), lambda t: t.gelu_erf(), 8, 2e-7),
        Case(functional.relu, (A,), lambda t: t.relu()),
        Case(functional.relu, (u32([0, 3]),), lambda t: t.relu()),
        Case(functional.tanh, (A,), lambda t: t.tanh(), 4),
        *[
            Case(
                lambda t, n=name, k=size, s=stride: getattr(functional, n)(t, k, stride=s),
                (PLANES,),
                lambda t, n=name, k=size, s=stride: getattr(t, f"{n}_with_stride")(k, s),
                2,
            )
            for name in ("avg_pool2d", "max_pool2d")
            for size, stride in [(1, 1), (2, 1), (2, 2), (3, 2), (4, 1), (5, 1), (2, 3)]
        ],
        Case(lambda t: functional.avg_pool2d(t, 2), (PLANES,), lambda t: t.avg_pool2d_with_stride(2, 1), 2),
        Case(lambda t: functional.max_pool2d(t, 2), (A,), lambda t: t.max_pool2d_with_stride(2, 1)),
        *[
            Case(
                lambda _, n=name, d=str(dtype): getattr(candle, n)((2, 0, 3), dtype=d),
                (A,),
                lambda t, n=name, d=dtype: getattr(type(t), n)((2, 0, 3), d, "cpu"),
            )
            for name in ("zeros", "ones")
            for dtype in (DType.U8, DType.BF16, DType.F64)
        ],
    ],
)
def test_functions(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("kind", KINDS)
def test_random_numbers_have_their_range_and_dtype(kind: Any) -> None:
    for theirs_made, made in [
        (candle.rand((50, 20)), kind.rand(0.0, 1.0, (50, 20), "cpu")),
        (candle.randn((50, 20)), kind.randn(0.0, 1.0, (50, 20), "cpu")),
    ]:
        assert (tuple(theirs_made.shape), str(theirs_made.dtype).lower()) == (tuple(made.shape), str(made.dtype))
    uniform, normal = kind.rand(0.0, 1.0, (50, 20), "cpu").numpy(), kind.randn(0.0, 1.0, (50, 20), "cpu").numpy()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    # Five standard errors of a thousand draws.
    assert abs(uniform.mean() - 0.5) < 5 * 12**-0.5 * 1000**-0.5
    assert abs(normal.mean()) < 5 * 1000**-0.5


def test_the_operators_with_numbers() -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda t: t + 1,
        lambda t: 1.5 + t,
        lambda t: t - 2,
        lambda t: t * 2,
        lambda t: 0.5 * t,
        lambda t: t / 2,
        lambda t: t == 1.0,
        lambda t: t != 1,
        lambda t: t < 0.5,
        lambda t: t <= 0.5,
        lambda t: t > 0.5,
        lambda t: t >= 0.5,
        lambda t: t + "a",
        lambda t: t < "a",
    ]
    for call in calls:
        agree(call, None, (A,))
    for call in [calls[0], calls[3], lambda t: t == 2, lambda t: t < 2]:
        agree(call, None, (u32([[3, 2], [4, 5]]),))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_hashes_by_identity(kind: Any) -> None:
    one = A.ours(kind)
    other = copy.deepcopy(one)
    assert len({one, one, other}) == 2


@pytest.mark.parametrize("pair", [(A, ROW), (A, f32(2.0)), (A, f32([[1.0], [2.0]])), (A, POSITIVE), (A, u32(2))])
def test_the_operators_with_tensors(pair: Any) -> None:
    calls: list[Callable[[Any, Any], Any]] = [
        lambda t, o: t + o,
        lambda t, o: t - o,
        lambda t, o: t * o,
        lambda t, o: t / o,
        lambda t, o: o / t,
        lambda t, o: t == o,
        lambda t, o: t != o,
        lambda t, o: t < o,
        lambda t, o: t <= o,
        lambda t, o: t > o,
        lambda t, o: t >= o,
    ]
    for call in calls:
        agree(call, None, pair)


@pytest.mark.parametrize(
    "operand",
    [
        A,
        f32(1.5),
        f32([1.0, 2.0, 3.0]),
        f32([[0.001, 1000.5], [-3.25, 7.0]]),
        f32([float("nan"), float("inf"), -float("inf"), 1.0]),
        f32([1e-7, 1.0]),
        f32([1e12, -2e12]),
        u32([[1, 20], [300, 4]]),
        counted(2, 3, 4),
        counted(20, 80),
        zeros(0),
    ],
    ids=lambda operand: str(tuple(getattr(operand.values, "shape", ()))),
)
def test_the_printed_text(operand: Any) -> None:
    # A lazy tensor shows its node; printing computes nothing.
    for tensor in (operand.ours(Tensor), operand.ours(LazyTensor).eval()):
        assert str(tensor) == str(operand.theirs())

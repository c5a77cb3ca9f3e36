"""Where ours is meant to differ from candle's own Python binding: the reasons, and that the difference is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from metal_candle import DType, error

import numpy as np
import pytest
from both import KINDS, Got, Operand, Raised, candle, counted, f32, ours, theirs, u8, u32, zeros

functional = pytest.importorskip("candle.functional")
INF, NAN = float("inf"), float("nan")
Call = Callable[..., Any]


class Difference(NamedTuple):
    """Why ours differs, both calls, and what each side gives: a value, or the name of an error."""

    reason: str
    theirs: Call
    their_result: Any
    ours: Call
    our_result: Any
    operands: tuple[Operand, ...] = ()


X, BYTE, IDS = f32([1.0, 2.0, 3.0]), u8([1, 2]), u32([5, 7])
DIFFERENCES = [
    # Integers.
    Difference(
        "a fraction beside integers is refused, not cut to an integer",
        lambda t: t * 0.5,
        [0, 0],
        lambda t: t * 0.5,
        error.Error,
        (IDS,),
    ),
    Difference("likewise in a sum", lambda t: t + 0.7, [5, 7], lambda t: t + 0.7, error.Error, (IDS,)),
    Difference(
        "an integer divided by a number is truncated; candle multiplies by 1/2 cast to an integer",
        lambda t: t / 2,
        [0, 0],
        lambda t: t / 2,
        [2, 3],
        (IDS,),
    ),
    Difference(
        "a number that the dtype does not hold is refused, not saturated",
        lambda t: t < 300,
        [1, 1],
        lambda t: t < 300,
        error.Error,
        (BYTE,),
    ),
    Difference("likewise a fraction", lambda t: t < 1.5, [0, 0], lambda t: t < 1.5, error.Error, (BYTE,)),
    Difference(
        "a mean of integers is refused; candle's is 0",
        lambda t: t.mean_all(),
        0,
        lambda t: t.mean_all(),
        error.UnsupportedDTypeForOpError,
        (IDS,),
    ),
    Difference(
        "integers are refused where the result would be a float; candle panics",
        lambda t: t.exp(),
        "PanicException",
        lambda t: t.exp(),
        error.UnsupportedDTypeForOpError,
        (IDS,),
    ),
    Difference(
        "the square of integers is defined", lambda t: t.sqr(), "PanicException", lambda t: t.sqr(), [25, 49], (IDS,)
    ),
    Difference(
        "integers divided by 0 are 0; candle panics",
        lambda t, o: t / o,
        "PanicException",
        lambda t, o: t / o,
        [0, 0],
        (IDS, u32([0, 0])),
    ),
    Difference(
        "an integer is subtracted; candle adds its negative, which U32 does not hold and which becomes 0",
        lambda t: t - 2,
        [5, 7],
        lambda t: t - 2,
        [3, 5],
        (IDS,),
    ),
    # NaN.
    Difference(
        "relu keeps NaN",
        functional.relu,
        [0.0, 1.0],
        lambda t: t.relu(),
        [NAN, 1.0],
        (f32([NAN, 1.0]),),
    ),
    *[
        Difference(
            "a NaN anywhere is the extreme; candle skips one that is not the first",
            lambda t, n=name: getattr(t, n)(0),
            [their_result],
            lambda t, n=name: getattr(t, n)(0),
            [our_result],
            (f32([1.0, NAN, 3.0]),),
        )
        for name, their_result, our_result in [
            ("max_keepdim", 3.0, NAN),
            ("min_keepdim", 1.0, NAN),
            ("argmax_keepdim", 2, 1),
            ("argmin_keepdim", 0, 1),
        ]
    ],
    Difference(
        "of an empty tensor, too, extremes along a dim that is not empty: there are none of them",
        lambda t: t.max_keepdim(0),
        "ValueError",
        lambda t: t.max_keepdim(0),
        [[]],
        (zeros(2, 0),),
    ),
    Difference(
        "MLX's float32 exponential on the CPU is infinite from 88.05 on; it need be from 88.73 on only",
        lambda t: t.exp().sqrt(),
        [float(np.float32(1.6501782e19))],
        lambda t: t.exp().sqrt(),
        [INF],
        (f32([88.5]),),
    ),
    # Halves.
    Difference(
        "F16 is summed in float32: from 2048 on, 1 is lost in candle's sum",
        lambda t: t.sum_all(),
        2048.0,
        lambda t: t.sum_all(),
        4096.0,
        (Operand(np.ones(4096), DType.F16),),
    ),
    Difference(
        "BF16 is multiplied on the CPU, too",
        lambda t: t.matmul(t),
        "ValueError",
        lambda t: t.matmul(t),
        [[4.0]],
        (Operand([[2.0]], DType.BF16),),
    ),
    # Ids.
    Difference(
        "the largest id means a row of zeros, as in candle since 0.8",
        lambda t, ids: t.index_select(ids, 0),
        "ValueError",
        lambda t, ids: t.index_select(ids, 0),
        [2.0, 0.0],
        (X, u8([1, 255])),
    ),
    Difference(
        "ids of gather may leave rows out, as in candle's later versions",
        lambda t, ids: t.gather(ids, 1),
        "ValueError",
        lambda t, ids: t.gather(ids, 1),
        [[1.0]],
        (f32([[0.0, 1.0], [2.0, 3.0]]), u32([[1]])),
    ),
    Difference(
        "rows of every layout can be chosen",
        lambda t, ids: t.t().index_select(ids, 0),
        "ValueError",
        lambda t, ids: t.t().index_select(ids, 0),
        [[1.0, 3.0]],
        (f32([[0.0, 1.0], [2.0, 3.0]]), u32([1])),
    ),
    # Dims and shapes.
    Difference(
        "dims count from the end everywhere",
        lambda t: t.unsqueeze(-1),
        "OverflowError",
        lambda t: t.unsqueeze(-1),
        [[1.0], [2.0], [3.0]],
        (X,),
    ),
    Difference(
        "likewise",
        lambda t: t.transpose(-1, 0),
        "OverflowError",
        lambda t: t.transpose(-1, 0),
        [[0.0], [1.0]],
        (counted(1, 2),),
    ),
    Difference(
        "likewise",
        lambda t: t.sum_keepdim(-1),
        "TypeError",
        lambda t: t.sum_keepdim(-1),
        [6.0],
        (X,),
    ),
    Difference(
        "a hole may stand anywhere; the binding divides by the sizes before it only",
        lambda t: t.reshape((-1, 3)),
        "ValueError",
        lambda t: t.reshape((-1, 3)),
        [[1.0, 2.0, 3.0]],
        (X,),
    ),
    Difference("0 is a size", lambda t: t.reshape((0,)), "ValueError", lambda t: t.reshape((0,)), [], (zeros(0, 2),)),
    Difference(
        "get takes no negative index, as in Rust; t[-1] does",
        lambda t: t.get(-1),
        3.0,
        lambda t: t.get(-1),
        error.NarrowInvalidArgsError,
        (X,),
    ),
    Difference(
        "narrow takes no negative start, as in Rust",
        lambda t: t.narrow(0, -2, 2),
        [2.0, 3.0],
        lambda t: t.narrow(0, -2, 2),
        error.NarrowInvalidArgsError,
        (X,),
    ),
    Difference(
        "nothing may be taken behind the last element, as in Rust",
        lambda t: t.narrow(0, 3, 0),
        "ValueError",
        lambda t: t.narrow(0, 3, 0),
        [],
        (X,),
    ),
    Difference(
        "a scalar is given back whatever the index, as in Rust",
        lambda t: t.get(3),
        "ValueError",
        lambda t: t.get(3),
        1.0,
        (f32(1.0),),
    ),
    Difference(
        "a single tensor is given back whatever the dim, as in Rust",
        lambda t: candle.cat([t], 5),
        "ValueError",
        lambda t: type(t).cat([t], 5),
        [1.0, 2.0, 3.0],
        (X,),
    ),
    Difference(
        "dims of size 1 do not matter to contiguity, as in candle since 0.5",
        lambda t: t.t().is_contiguous(),
        False,
        lambda t: t.t().is_contiguous(),
        True,
        (counted(1, 3),),
    ),
    # Operators that the binding lacks.
    Difference("subtracting from a number", lambda t: 1 - t, "TypeError", lambda t: 1 - t, [0.0, -1.0, -2.0], (X,)),
    Difference("dividing a number", lambda t: 6 / t, "TypeError", lambda t: 6 / t, [6.0, 3.0, 2.0], (X,)),
    # Indexing.
    Difference("steps are honoured", lambda t: t[::2], [1.0, 2.0, 3.0], lambda t: t[::2], [1.0, 3.0], (X,)),
    Difference("ids in a list count from the end", lambda t: t[[-1]], "ValueError", lambda t: t[[-1]], [3.0], (X,)),
    Difference(
        "`...` may stand anywhere", lambda t: t[0, ...], "TypeError", lambda t: t[0, ...], [0.0, 1.0], (counted(2, 2),)
    ),
    Difference("`...` may stand for no dims", lambda t: t[..., 0], "ValueError", lambda t: t[..., 0], 1.0, (X,)),
    Difference(
        "a new dim behind `...` is the last",
        lambda t: t[..., None],
        [[1.0, 2.0, 3.0]],
        lambda t: t[..., None],
        [[1.0], [2.0], [3.0]],
        (X,),
    ),
    Difference(
        "ids of any rank",
        lambda t, ids: t[ids],
        "TypeError",
        lambda t, ids: t[ids],
        [[2.0, 1.0]],
        (X, u32([[1, 0]])),
    ),
    Difference(
        "bytes of the tensor's own shape look like a mask, which where_cond takes",
        lambda t, ids: t[ids],
        [2.0, 1.0, 1.0],
        lambda t, ids: t[ids],
        error.Error,
        (X, u8([1, 0, 0])),
    ),
    Difference("a truth value is no index", lambda t: t[True], 2.0, lambda t: t[True], error.Error, (X,)),
    Difference(
        "a scalar has nothing to index; candle panics",
        lambda t: t[0],
        "PanicException",
        lambda t: t[0],
        error.DimOutOfRangeError,
        (f32(1.0),),
    ),
    # Data.
    Difference(
        "integers are I64, also small ones", lambda: str(candle.Tensor([1]).dtype), "U32", lambda: DType.I64, "i64"
    ),
]


def _plain(result: Any) -> Any:
    if isinstance(result, Got):
        return result.values.tolist()
    return type(result.error).__name__ if isinstance(result, Raised) else result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.reason)
def test_differences_are_there(difference: Difference, kind: Any) -> None:
    want = _plain(theirs(difference.theirs, *difference.operands))
    np.testing.assert_equal(want, difference.their_result)
    got = ours(kind, difference.ours, *difference.operands)
    if isinstance(difference.our_result, type):
        assert isinstance(got, Raised)
        assert isinstance(got.error, difference.our_result)
        assert got.recorded
    else:
        np.testing.assert_equal(_plain(got), difference.our_result)
        with pytest.raises(AssertionError):
            np.testing.assert_equal(_plain(got), want)

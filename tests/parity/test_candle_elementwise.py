"""Elementwise operations and casts of candle's binding beside ours, on shapes and values that property tests choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from metal_candle import DType

import numpy as np
import pytest
from both import DTYPES, FLOATS, INTS, Operand, agree, float32
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odd import LIMITS, arrays

functional = pytest.importorskip("candle.functional")
EXAMPLES = settings(max_examples=25, deadline=None)
LARGEST = LIMITS[DType.F32][0]


def operands(dtype: DType, low: float | None = None, high: float | None = None, finite: bool = False) -> Any:
    """Operands of any shape with any values, as far as both sides can be given them."""
    if dtype is DType.F64:
        low, high = -LARGEST if low is None else low, LARGEST if high is None else high
    return arrays(dtype, low=low, high=high, finite=finite).map(lambda values: Operand(float32(values, dtype), dtype))


class Unary(NamedTuple):
    """Both calls, where they are compared, and how near in roundings and in units of the dtype's epsilon."""

    theirs: Callable[[Any], Any]
    ours: Callable[[Any], Any] | None = None
    low: float | None = None
    high: float | None = None
    ulps: float = 4
    absolute: float = 0
    finite: bool = False
    # Absolutely, what candle's own F64 is off by.
    double: float = 0.0


UNARY = {
    "abs": Unary(lambda t: t.abs(), ulps=0),
    "recip": Unary(lambda t: t.recip(), ulps=1),
    "sqr": Unary(lambda t: t.sqr(), ulps=1),
    "sqrt": Unary(lambda t: t.sqrt(), ulps=1),
    # As in tests/graph/test_elementwise_properties.py: what MLX's float32 functions are off by.
    # The end of the range is one of the differences.
    "exp": Unary(lambda t: t.exp(), high=88.0, ulps=40),
    "log": Unary(lambda t: t.log(), absolute=4),
    "sin": Unary(lambda t: t.sin(), None, -30, 30, absolute=4, finite=True),
    "cos": Unary(lambda t: t.cos(), None, -30, 30, absolute=4, finite=True),
    "square": Unary(lambda t: t.powf(2.0), ulps=8),
    "power": Unary(lambda t: t.powf(1.5), low=0, ulps=8),
    "root": Unary(lambda t: t.powf(-0.5), low=0, ulps=8),
    "tanh": Unary(functional.tanh, lambda t: t.tanh(), ulps=8, absolute=4),
    # Halves: candle rounds the exponential, the sum and the quotient, each.
    "silu": Unary(functional.silu, lambda t: t.silu(), -80, ulps=60, finite=True),
    "gelu": Unary(functional.gelu, lambda t: t.gelu_erf(), -8, 1e4, absolute=16, finite=True, double=1e-9),
    # NaN is one of the differences.
    "relu": Unary(functional.relu, lambda t: t.relu(), ulps=0, finite=True),
}


@pytest.mark.parametrize("name", UNARY)
@EXAMPLES
@given(st.data())
def test_unary(name: str, data: st.DataObject) -> None:
    case = UNARY[name]
    dtype = data.draw(st.sampled_from(FLOATS))
    operand = data.draw(operands(dtype, case.low, case.high, case.finite))
    # Both compute F64 in F64, by formulas that differ in their last digits.
    more = 100 if dtype is DType.F64 and case.ulps else 1
    absolute = case.absolute * more * LIMITS[dtype][2] + (case.double if dtype is DType.F64 else 0.0)
    agree(case.theirs, case.ours, [operand], case.ulps * more, absolute)


@EXAMPLES
@given(st.data())
def test_abs_of_integers(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(INTS))
    agree(lambda t: t.abs(), None, [data.draw(operands(dtype, low=-(2**62)))])


def pairs(data: st.DataObject, dtype: DType, low: float | None = None, high: float | None = None) -> list[Operand]:
    """Two operands whose shapes broadcast."""
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_dims=3, max_side=3))
    if dtype is DType.F64:
        low, high = -LARGEST, LARGEST
    drawn = [data.draw(arrays(dtype, shape, low, high)) for shape in shapes.input_shapes]
    return [Operand(float32(values, dtype), dtype) for values in drawn]


ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda t, o: t + o,
    "sub": lambda t, o: t - o,
    "mul": lambda t, o: t * o,
    "div": lambda t, o: t / o,
    "broadcast_add": lambda t, o: t.broadcast_add(o),
    "broadcast_sub": lambda t, o: t.broadcast_sub(o),
    "broadcast_mul": lambda t, o: t.broadcast_mul(o),
    "broadcast_div": lambda t, o: t.broadcast_div(o),
}


@pytest.mark.parametrize("name", ARITHMETIC)
@EXAMPLES
@given(st.data())
def test_arithmetic(name: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    # Integers divided by 0 are one of the differences; candle panics.
    low = 1 if "div" in name and dtype.is_int() else None
    # Rust wraps around here as MLX does, in U8 and U32; sums and products of I64 stay inside NumPy's own.
    high = 2**30 if dtype is DType.I64 else None
    low = -(2**30) if dtype is DType.I64 and low is None else low
    agree(ARITHMETIC[name], None, pairs(data, dtype, low, high), ulps=1 if dtype.is_float() else 0)


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda t, o: t == o,
    "ne": lambda t, o: t != o,
    "lt": lambda t, o: t < o,
    "le": lambda t, o: t <= o,
    "gt": lambda t, o: t > o,
    "ge": lambda t, o: t >= o,
}


@pytest.mark.parametrize("name", COMPARISONS)
@EXAMPLES
@given(st.data())
def test_comparisons(name: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    agree(COMPARISONS[name], None, pairs(data, dtype))
    number = data.draw(st.sampled_from([0, 1, 3]))
    agree(lambda t: COMPARISONS[name](t, number), None, pairs(data, dtype)[:1])


@pytest.mark.parametrize("start", DTYPES, ids=str)
@pytest.mark.parametrize("end", DTYPES, ids=str)
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_casts(start: DType, end: DType, data: st.DataObject) -> None:
    operand = data.draw(operands(start))
    agree(lambda t: t.to_dtype(str(end)), None, [operand])


ENDS = [-129.0, -128.5, -0.9, 0.9, 254.5, 255.0, 255.9, 256.0, 65504.0, 65520.0, 2.0**31, 2.0**32, 2.0**33, -(2.0**63)]


@pytest.mark.parametrize("start", FLOATS, ids=str)
@pytest.mark.parametrize("end", DTYPES, ids=str)
def test_casts_at_the_ends_of_the_ranges(start: DType, end: DType) -> None:
    special = [*ENDS, 2.0**62, 2.0**63, 2.0**64, 1e30, 3e38, -3e38, float("nan"), float("inf"), float("-inf"), -0.0]
    operand = Operand(np.array(special, np.float32), DType.F32)
    agree(lambda t: t.to_dtype(str(start)).to_dtype(str(end)), None, [operand])


@pytest.mark.parametrize("start", INTS, ids=str)
@pytest.mark.parametrize("end", DTYPES, ids=str)
def test_casts_of_integers_at_the_ends_of_the_ranges(start: DType, end: DType) -> None:
    numbers = [0, 1, 127, 128, 255, 256, 257, 65519, 65520, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1]
    numbers += [-1, -128, -129, -(2**31), -(2**63), 2**63 - 1]
    agree(lambda t: t.to_dtype(str(start)).to_dtype(str(end)), None, [Operand(np.array(numbers), DType.I64)])

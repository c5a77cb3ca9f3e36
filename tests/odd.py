"""Arrays for property tests: every dtype, shapes of rank 0 to 4 with empty ones, and values that break things."""

from __future__ import annotations

from typing import Any

from metal_candle import Device, DType

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Array = np.ndarray[Any, Any]

FLOATS = [DType.BF16, DType.F16, DType.F32, DType.F64]
INTS = [DType.U8, DType.I16, DType.U32, DType.I32, DType.I64]
NUMPY = {
    DType.U8: np.uint8,
    DType.I16: np.int16,
    DType.U32: np.uint32,
    DType.I32: np.int32,
    DType.I64: np.int64,
    # NumPy has no bfloat16: float32 holds its values.
    DType.BF16: np.float32,
    DType.F16: np.float16,
    DType.F32: np.float32,
    DType.F64: np.float64,
}
# Largest finite value, smallest normal one, distance of 1 to the next.
LIMITS = {
    DType.BF16: (3.3895313892515355e38, 2.0**-126, 2.0**-7),
    DType.F16: (65504.0, 2.0**-14, 2.0**-10),
    DType.F32: (float(np.finfo(np.float32).max), 2.0**-126, 2.0**-23),
    DType.F64: (float(np.finfo(np.float64).max), 2.0**-1022, 2.0**-52),
}
ODD = [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1.0, -1.0, 3.0]
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def rounded(values: Array, dtype: DType) -> Array:
    """float64 values rounded to nearest, ties to even, to a float dtype: the definition, in float64."""
    largest, normal, epsilon = LIMITS[dtype]
    if dtype is DType.F64:
        return values
    with np.errstate(all="ignore"):
        exponent = np.floor(np.log2(np.maximum(np.abs(values), normal)))
        # log2 may round up next to a power of two.
        exponent = np.where(np.exp2(exponent) > np.maximum(np.abs(values), normal), exponent - 1, exponent)
        quantum = np.exp2(exponent) * epsilon
        nearest = np.rint(values / quantum) * quantum
    nearest = np.where(np.abs(nearest) > largest, np.copysign(np.inf, values), nearest)
    return np.where(np.isfinite(values), nearest, values)


def elements(dtype: DType, low: float | None = None, high: float | None = None, finite: bool = False) -> Any:
    """Numbers of a dtype from ``low`` to ``high``: usual ones, odd ones, and at will NaN and infinities."""
    if dtype.is_int():
        info = np.iinfo(NUMPY[dtype])
        first = info.min if low is None else max(int(low), info.min)
        last = info.max if high is None else min(int(high), info.max)
        return st.one_of(st.integers(first, last), st.sampled_from([first, last, max(first, min(last, 0))]))
    largest = LIMITS[dtype][0]
    first, last = -largest if low is None else low, largest if high is None else high
    odd = [value for value in ODD if first <= value <= last]
    if not finite:
        odd += NOT_FINITE
    usual = st.floats(max(first, -100.0), min(last, 100.0))
    return st.one_of(usual, st.floats(first, last), st.sampled_from(odd))


@st.composite
def arrays(
    draw: Any,
    dtype: DType,
    shape: Any = shapes,
    low: float | None = None,
    high: float | None = None,
    finite: bool = False,
) -> Array:
    """An array whose values the dtype holds exactly, BF16's as float32."""
    target = NUMPY[dtype]
    size = draw(shape) if not isinstance(shape, tuple) else shape
    wide = np.int64 if dtype.is_int() else np.float64
    drawn = draw(hnp.arrays(wide, size, elements=elements(dtype, low, high, finite), fill=st.nothing()))
    if dtype.is_float():
        drawn = rounded(drawn, dtype)
    return np.asarray(drawn.astype(target))


def tensor(kind: Any, values: Array, dtype: DType) -> Any:
    """The values as a tensor of that kind on the CPU."""
    with mx.stream(mx.cpu):
        array = mx.array(np.asarray(values, NUMPY[dtype]), dtype.mlx_)
        mx.eval(array)
    return kind.new(array, Device.Cpu)


def assert_float(got: Array, want: Array, dtype: DType, ulps: float = 4, absolute: float = 0.0) -> None:
    """``got`` within some roundings of the float64 ``want``; NaN and infinities in the same places.

    Where the value is next to the largest of the dtype either may be infinite; below the smallest normal number only
    the absolute difference counts, as hardware may flush it.
    """
    largest, normal, epsilon = LIMITS[dtype]
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    edge = ~np.isnan(want) & (np.abs(want) > largest * (1 - ulps * epsilon))
    assert np.all(np.abs(got[edge]) >= largest * (1 - 2 * ulps * epsilon))
    assert np.all(np.sign(got[edge]) == np.sign(want[edge]))
    rest = ~np.isnan(want) & ~edge
    error = np.abs(got[rest] - want[rest])
    allowed = ulps * epsilon * np.abs(want[rest]) + normal * 4 + absolute
    assert np.all(error <= allowed), (got[rest][error > allowed], want[rest][error > allowed])

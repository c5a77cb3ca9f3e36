"""A scalar is a number as its dtype holds it."""

from __future__ import annotations

import re
from typing import Any

import metal_candle as mc
from metal_candle import DType, Scalar, Tensor, error

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = pytest.mark.parametrize("dtype", list(DType), ids=str)


@DTYPES
def test_zero_and_one(dtype: DType) -> None:
    zero, one = Scalar.zero(dtype), Scalar.one(dtype.as_str())
    assert (zero.dtype(), zero.to_f64(), one.dtype(), one.to_f64()) == (dtype, 0.0, dtype, 1.0)
    assert type(one.to_f64()) is float
    assert (float(one), int(one)) == (1.0, 1)
    assert one == Scalar(1, dtype) != zero
    assert repr(one) == f"Scalar({1 if dtype.is_int() else 1.0}, {dtype})"


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1, DType.I64),
        (1.5, DType.F32),
        (True, DType.U8),
        (np.float64(1), DType.F64),
        (np.float16(1), DType.F16),
        (np.uint32(1), DType.U32),
        (np.bool_(True), DType.U8),
    ],
)
def test_dtype_of_a_number(value: Any, dtype: DType) -> None:
    assert Scalar(value).dtype() is dtype
    assert Scalar(value).to_f64() == float(value)


@settings(deadline=None, max_examples=60)
@given(st.floats(-60000, 60000), st.sampled_from([DType.BF16, DType.F16, DType.F32, DType.F64]))
def test_a_float_is_rounded_as_a_tensor_s_is(value: float, dtype: DType) -> None:
    assert Scalar(value, dtype).to_f64() == Tensor(value, dtype=dtype).to_dtype("f64").to_scalar()


def test_odd_floats() -> None:
    assert Scalar(1e6, "f16").to_f64() == float("inf")
    assert Scalar(float("-inf"), "bf16").to_f64() == float("-inf")
    assert np.isnan(Scalar(float("nan")).to_f64())
    assert Scalar(0.1, "f16").to_f64() == 0.0999755859375
    assert len({Scalar(1.0), Scalar(1.0, "f32"), Scalar(1.0, "f64"), Scalar(1)}) == 3


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (256, "u8", "got 256 for u8; takes an integer from 0 to 255"),
        (-1, "u32", "got -1 for u32; takes an integer from 0 to 4294967295"),
        (2**63, None, "got 9223372036854775808 for i64"),
        (1.5, "i32", "got 1.5 for i32"),
        (float("nan"), "i64", "got nan for i64"),
        (float("inf"), "u8", "got inf for u8"),
        ("1", "i16", "got '1' for i16"),
        ("1", "f32", "got '1' for f32; takes a number"),
        (1j, "f64", "got 1j for f64; takes a number"),
        (10**400, "f64", "takes what a float holds"),
        ("1", None, "got '1'; takes a number"),
        (None, None, "got None; takes a number"),
    ],
)
def test_what_is_no_scalar(value: Any, dtype: Any, text: str) -> None:
    with pytest.raises(mc.Error, match=re.escape(text)):
        Scalar(value, dtype)


def test_whole_floats_are_integers_and_dtypes_are_checked() -> None:
    assert Scalar(3.0, "u8").value == Scalar(np.float32(3), "u8").value == 3
    assert type(Scalar(3.0, "u8").value) is int
    with pytest.raises(error.DTypeParseError):
        Scalar(1, "f8")
    with pytest.raises(error.DTypeParseError):
        Scalar(np.int8(1))
    with pytest.raises(AttributeError):
        Scalar(1).value = 2  # type: ignore[misc]

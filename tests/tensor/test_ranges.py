"""Ranges: candle's numbers, their dtypes, and arguments that make none."""

from __future__ import annotations

import re
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor, Var])


def by_adding(start: Any, end: Any, step: Any, rounded: Any) -> list[float]:
    """candle's loop."""
    found, current, end, step = [], rounded(start), rounded(end), rounded(step)
    while current < end if step > 0 else current > end:
        found.append(float(current))
        current = rounded(current + step)
    return found


@settings(deadline=None, max_examples=80)
@given(
    st.integers(-40, 40), st.integers(-40, 40), st.integers(-9, 9).filter(bool), st.sampled_from(["i16", "i32", "i64"])
)
def test_ranges_of_integers_are_python_s(start: int, end: int, step: int, dtype: str) -> None:
    for kind in (Tensor, LazyTensor):
        tensor = kind.arange_step(start, end, step, dtype=dtype)
        assert tensor.tolist() == list(range(start, end, step))
        assert tensor.dtype is DType.of(dtype)
    assert Tensor.arange(start, end).tolist() == list(range(start, end))


@settings(deadline=None, max_examples=80)
@given(
    st.floats(-20, 20, width=16),
    st.floats(-20, 20, width=16),
    st.floats(0.03125, 4, width=16),
    st.sampled_from([1, -1]),
    st.sampled_from(["f16", "f32", "f64"]),
)
def test_ranges_of_floats_are_candle_s_sum(start: float, end: float, step: float, sign: int, dtype: str) -> None:
    rounded = {"f16": np.float16, "f32": np.float32, "f64": np.float64}[dtype]
    tensor = Tensor.arange_step(start, end, sign * step, dtype=dtype)
    assert tensor.tolist() == by_adding(start, end, sign * step, rounded)
    assert tensor.dtype is DType.of(dtype)


@settings(deadline=None, max_examples=20)
@given(st.integers(-300, 100), st.integers(0, 300), st.integers(2, 64))
def test_ranges_of_bf16_are_candle_s_sum(start: int, length: int, step: int) -> None:
    def rounded(value: Any) -> np.float32:
        return np.float32(mx.array(float(value), mx.bfloat16).item())

    tensor = Tensor.arange_step(start, start + length, step, dtype="bf16")
    assert tensor.tolist() == by_adding(start, start + length, step, rounded)


def test_rounding_decides_how_many_numbers_there_are() -> None:
    """0.1 added ten times stays below 1 in F64, and above it in F32."""
    assert Tensor.arange_step(0.0, 1.0, 0.1, dtype="f64").dims() == [11]
    assert Tensor.arange_step(0.0, 1.0, 0.1).dims() == [10]
    assert mx.arange(0.0, 1.0, 0.1).shape == (10,)


def test_long_ranges_of_floats() -> None:
    tensor = Tensor.arange(0.0, 3e6)
    assert tensor.dims() == [3_000_000]
    np.testing.assert_array_equal(tensor.numpy(), np.arange(3_000_000, dtype=np.float32))


@KINDS
@pytest.mark.parametrize(
    ("start", "end", "step", "dtype"),
    [
        (0, 3, 1, DType.I64),
        (np.int32(0), 3, 1, DType.I64),
        (0.0, 3, 1, DType.F32),
        (0, 3.0, 1, DType.F32),
        (0, 3, 1.0, DType.F32),
    ],
)
def test_ranges_choose_a_dtype(kind: Any, start: Any, end: Any, step: Any, dtype: DType) -> None:
    tensor = kind.arange_step(start, end, step)
    assert (tensor.dtype, tensor.tolist()) == (dtype, [0, 1, 2])
    assert kind.arange(0, 3, dtype="u8").dtype is DType.U8


def test_ranges_at_the_ends_of_a_dtype() -> None:
    assert Tensor.arange(250, 256, dtype="u8").tolist() == [250, 251, 252, 253, 254, 255]
    assert Tensor.arange_step(250, 256, 10, dtype="u8").tolist() == [250]
    assert Tensor.arange_step(-(2**63), 2**63, 2**62).tolist() == [-(2**63), -(2**62), 0, 2**62]
    assert Tensor.arange_step(2**63 - 1, -(2**63) - 1, -(2**63)).tolist() == [2**63 - 1, -1]
    assert Tensor.arange(2**62, 2**62 + 2).tolist() == [2**62, 2**62 + 1]


@pytest.mark.parametrize(
    ("arguments", "dtype", "text"),
    [
        ((0, 1, 0), None, "got step 0; takes any other"),
        ((0.0, 1.0, 0.0), None, "got step 0.0; takes any other"),
        ((0.0, 1.0, 1e-60), "f32", "step 1e-60 is 0 in f32; takes any other"),
        ((0, 3000, 1), "f16", "adding 1.0 to 2048.0 changes nothing in f16; takes a larger step or a wider dtype"),
        ((0, 300, 1), "bf16", "adding 1.0 to 256.0 changes nothing in bf16"),
        ((2.0**24, 2.0**24 + 8, 1.0), "f32", "adding 1.0 to 16777216.0 changes nothing in f32"),
        ((0, 300, 1), "u8", "0 to 299 leave u8; takes integers from 0 to 255"),
        ((-1, 3, 1), "u32", "-1 to 2 leave u32; takes integers from 0 to"),
        ((0, 1.5, 1), "i64", "got 1.5 beside i64; takes integers"),
        ((0, 1e5, 1), "f16", "got 0, 100000.0, 1; takes numbers that f16 holds"),
        ((0, float("inf"), 1), None, "got inf for end; takes a finite number"),
        ((float("nan"), 1, 1), None, "got nan for start; takes a finite number"),
        ((0, "3", 1), None, "got '3' for end; takes a finite number"),
        ((0, 10**400, 1), None, "got an integer of 1329 bits"),
        ((0, 1, True), None, "got True for step; takes a finite number"),
        ((0, 2**40, 1), None, "got 0 to 1099511627776 by 1, too many numbers; takes up to 2147483647"),
    ],
)
def test_ranges_that_are_none(arguments: Any, dtype: Any, text: str) -> None:
    for kind in (Tensor, LazyTensor):
        with pytest.raises(mc.Error, match=re.escape(f"arange_step: {text}")):
            kind.arange_step(*arguments, dtype=dtype)

"""candle's helpers for tests."""

from __future__ import annotations

import re
from typing import Any

from metal_candle import LazyTensor, Tensor, error
from metal_candle.test_utils import assert_tensor_eq, to_vec0_round, to_vec1_round, to_vec2_round, to_vec3_round

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])


@KINDS
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "f64"])
def test_rounding_gives_what_is_written(kind: Any, dtype: str) -> None:
    assert to_vec0_round(kind.new(0.25, dtype=dtype), 1) == 0.3
    assert to_vec1_round(kind.new([0.5, -0.5, 1.5, -2.5], dtype=dtype), 0) == [1.0, -1.0, 2.0, -3.0]
    assert to_vec2_round(kind.new([[1.125, -1.125]], dtype=dtype), 2) == [[1.13, -1.13]]
    assert to_vec3_round(kind.new([[[14.0, -26.0]]], dtype=dtype), -1) == [[[10.0, -30.0]]]


def test_candle_s_own_figures() -> None:
    x = Tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])
    assert to_vec1_round(x.exp().log(), 4) == [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    assert to_vec1_round(Tensor([1.0, 2.0]).sin(), 4) == [0.8415, 0.9093]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1000, 1000, width=32), max_size=6), st.integers(0, 4))
def test_rounding_is_to_the_nearest(values: list[float], digits: int) -> None:
    """Within half a unit of the last digit, and the error of one product in float32."""
    for value, rounded in zip(values, to_vec1_round(Tensor(np.array(values, np.float32)), digits)):
        assert abs(rounded - value) <= 0.5 * 10.0**-digits + abs(value) * 2.0**-23
        assert rounded == float(f"{rounded:.{digits}f}")


def test_what_is_not_finite_stays_so() -> None:
    nan, *rest = to_vec1_round(Tensor([float("nan"), float("inf"), float("-inf"), -0.0]), 3)
    assert np.isnan(nan)
    assert rest == [float("inf"), float("-inf"), 0.0]


@KINDS
def test_other_ranks_and_dtypes_are_refused(kind: Any) -> None:
    x = kind.zeros((2, 3))
    for rank, function in [(0, to_vec0_round), (1, to_vec1_round), (3, to_vec3_round)]:
        text = re.escape(f"to_vec{rank}_round: got rank 2, shape (2, 3); takes rank {rank}")
        with pytest.raises(error.UnexpectedNumberOfDimsError, match=text):
            function(x, 2)
    with pytest.raises(error.UnexpectedDTypeError, match="to_vec2_round: expected dtype a float dtype, got i64"):
        to_vec2_round(kind.zeros((2, 3), "i64"), 2)


@KINDS
@pytest.mark.parametrize("dtype", ["u8", "i64", "bf16", "f64"])
def test_equal_tensors(kind: Any, dtype: str) -> None:
    x = kind.new([[1, 2, 3], [4, 5, 6]], dtype=dtype)
    assert_tensor_eq(x, kind.new([[1, 2, 3], [4, 5, 6]], dtype=dtype))
    assert_tensor_eq(kind.zeros((0, 2), dtype), kind.zeros((0, 2), dtype))
    with pytest.raises(AssertionError, match=re.escape("2 of 6 elements differ, the first at (0, 2): 3")):
        assert_tensor_eq(x, kind.new([[1, 2, 9], [9, 5, 6]], dtype=dtype))
    with pytest.raises(AssertionError, match=re.escape("shapes differ: (2, 3) and (3, 2)")):
        assert_tensor_eq(x, x.t())
    with pytest.raises(error.DTypeMismatchError, match="eq: dtypes differ"):
        assert_tensor_eq(x, x.to_dtype("f32"))


def test_nan_equals_nothing() -> None:
    x = Tensor([float("nan")])
    with pytest.raises(AssertionError, match=re.escape("1 of 1 elements differ, the first at (0,): nan, nan")):
        assert_tensor_eq(x, x)

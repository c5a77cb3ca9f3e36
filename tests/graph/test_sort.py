"""``arg_sort_last_dim`` and ``sort_last_dim`` (the record ``sort_last_dim``): order, ties, NaN, gradients."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slope import assert_slopes

KINDS = [Tensor, LazyTensor]
# Few values, so that there are ties; in NumPy's descending order too NaN is the largest.
FLOATS = [0.0, -0.0, 1.0, -1.5, 1e30, float("inf"), float("-inf"), float("nan")]


def order(x: Any, asc: bool) -> Any:
    """A stable order of the last dim, by NumPy, where NaN counts as the largest."""
    if asc:
        return np.argsort(x, axis=-1, kind="stable")
    return x.shape[-1] - 1 - np.argsort(x[..., ::-1], axis=-1, kind="stable")[..., ::-1]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Any, DType]:
    dtype = draw(st.sampled_from(list(DType)))
    shape = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    if dtype.is_float():
        values = [v for v in FLOATS if dtype is not DType.F16 or not 1e5 < abs(v) < 1e31]
    else:
        values = [0, 1, 2, 255] if dtype is DType.U8 else [0, 1, 200, 2**15 - 1]
        values += [2**32 - 1] if dtype is DType.U32 else []
        values += [-3, -(2**15)] if dtype in (DType.I16, DType.I32, DType.I64) else []
    count = int(np.prod(shape))
    chosen = draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))
    wide = np.array(chosen, np.float64 if dtype.is_float() else np.int64)
    return wide.reshape(shape), dtype


@settings(max_examples=150, deadline=None)
@given(tables(), st.booleans(), st.sampled_from(KINDS))
def test_the_order_is_a_stable_one(case: Any, asc: bool, kind: Any) -> None:
    wide, dtype = case
    tensor = kind.new(wide, Device.Cpu, dtype)
    x = tensor.numpy()
    values, ids = tensor.sort_last_dim(asc)
    want = order(x, asc)
    assert (ids.dtype, values.dtype) == (DType.U32, dtype)
    np.testing.assert_array_equal(ids.numpy(), want)
    np.testing.assert_array_equal(values.numpy(), np.take_along_axis(x, want, -1))
    np.testing.assert_array_equal(tensor.arg_sort_last_dim(asc).numpy(), want)


@pytest.mark.parametrize("asc", [True, False])
@pytest.mark.parametrize("size", [100, 5000])
def test_ties_in_long_rows_keep_their_order(asc: bool, size: int) -> None:
    x = np.random.default_rng(0).integers(0, 5, (3, size)).astype(np.float32)
    np.testing.assert_array_equal(Tensor(x).arg_sort_last_dim(asc).numpy(), order(x, asc))


def test_a_nan_with_its_sign_bit_is_as_large_as_any() -> None:
    x = np.array([np.nan, 1.0, -np.nan, np.inf], np.float32)
    assert np.signbit(x[2])
    assert Tensor(x).arg_sort_last_dim(True).to_vec1() == [1, 3, 0, 2]
    assert Tensor(x).arg_sort_last_dim(False).to_vec1() == [0, 2, 3, 1]


@pytest.mark.parametrize("asc", [True, False])
def test_gradient_of_the_sorted_values(asc: bool) -> None:
    x = np.random.default_rng(0).permutation(24).reshape(2, 3, 4) / 8
    assert_slopes(lambda t: t.sort_last_dim(asc)[0], x)


def test_the_ids_carry_no_gradient() -> None:
    w = Var([3.0, 1.0, 2.0])
    values, ids = w.sort_last_dim(True)
    assert values.track_op()
    assert not ids.track_op()
    assert not w.arg_sort_last_dim(True).track_op()
    assert (values * Tensor([1.0, 2.0, 3.0])).backward()[w].to_vec1() == [3.0, 1.0, 2.0]


def test_ties_give_each_element_the_gradient_of_its_own_place() -> None:
    w = Var([1.0, 1.0, 0.0])
    weights = Tensor([10.0, 20.0, 30.0])
    assert (w.sort_last_dim(True)[0] * weights).backward()[w].to_vec1() == [20.0, 30.0, 10.0]
    assert (w.sort_last_dim(False)[0] * weights).backward()[w].to_vec1() == [10.0, 20.0, 30.0]


def test_both_results_from_one_recording() -> None:
    lazy = LazyTensor.new([2.0, 1.0])
    values, ids = lazy.sort_last_dim(True)
    assert not values.is_evaluated()
    assert mc.eval_all([values, ids])[1].to_vec1() == [1, 0]
    compiled = mc.compile(lambda x: x.sort_last_dim(False))
    high, places = compiled(Tensor([1.0, 3.0, 2.0]))
    assert (high.to_vec1(), places.to_vec1()) == ([3.0, 2.0, 1.0], [1, 2, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_scalar_is_refused(kind: Any) -> None:
    for name in ("sort_last_dim", "arg_sort_last_dim"):
        with pytest.raises(
            mc.error.UnexpectedNumberOfDimsError, match=rf"{name}: got rank 0, shape \(\); takes rank 1 or"
        ):
            getattr(kind.new(1.0), name)(True)

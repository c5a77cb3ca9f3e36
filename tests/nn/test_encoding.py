"""``nn.encoding.one_hot``: against NumPy, dtypes of ids and values, ids that name nothing, refusals."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor
from metal_candle.nn.encoding import one_hot

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])


def expected(ids: Any, depth: int, on: float, off: float) -> Any:
    return np.where(ids[..., None] == np.arange(depth), on, off)


@given(
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements=st.integers(-1, 4)),
    st.integers(5, 7),
)
@settings(deadline=None, max_examples=40)
def test_any_shape(ids: Any, depth: int) -> None:
    want = expected(ids, depth, 2.0, -0.5)
    compiled = mc.compile(lambda t: one_hot(t, depth, 2.0, -0.5))
    for got in (
        one_hot(Tensor(ids), depth, 2.0, -0.5),
        one_hot(LazyTensor.new(ids), depth, 2.0, -0.5),
        compiled(Tensor(ids)),
    ):
        assert got.dtype is DType.F32
        np.testing.assert_array_equal(got.numpy(), want)


@KINDS
@pytest.mark.parametrize("ids", [DType.U8, DType.U32, DType.I32, DType.I64], ids=str)
def test_dtypes_of_ids(kind: Any, ids: DType) -> None:
    got = one_hot(kind.new([[0, 2], [1, 3]], dtype=ids), 4, 0, 1)
    assert isinstance(got, kind)
    assert (got.dtype, got.dims()) == (DType.I64, [2, 2, 4])
    np.testing.assert_array_equal(got.numpy(), 1 - np.eye(4, dtype=int)[[[0, 2], [1, 3]]])


@KINDS
def test_a_depth_beyond_the_ids_range(kind: Any) -> None:
    got = one_hot(kind.new([255, 3], dtype=DType.U8), 300, 1, 0).numpy()
    assert [row.nonzero()[0].tolist() for row in got] == [[255], [3]]


@KINDS
@pytest.mark.parametrize("dtype", ["u8", "u32", "i16", "i32", "i64", "bf16", "f16", "f32", "f64"])
def test_dtypes_of_values(kind: Any, dtype: str) -> None:
    got = one_hot(kind.new([1, -1], mc.Device.Cpu), 2, 5, 3, dtype=dtype)
    assert got.dtype is DType.of(dtype)
    assert got.tolist() == [[3, 5], [3, 3]]


def test_the_dtype_follows_the_values() -> None:
    ids = Tensor([0])
    assert one_hot(ids, 2, 1.0, 0.0).dtype is DType.F32
    assert one_hot(ids, 2, 1, 0.5).dtype is DType.F32
    assert one_hot(ids, 2, 1, 0).dtype is DType.I64
    assert one_hot(ids, 2, 2**62 + 1, -(2**63)).tolist() == [[2**62 + 1, -(2**63)]]


@pytest.mark.parametrize("id", [4, -2, 1000])
def test_ids_outside(id: int) -> None:
    text = rf"one_hot: index {id} is out of range; takes 0\.\.3"
    with pytest.raises(mc.error.InvalidIndexError, match=text):
        one_hot(Tensor([0, id]), 4, 1.0, 0.0)
    lazy = one_hot(LazyTensor.new([0, id]), 4, 1.0, 0.0)
    with pytest.raises(mc.error.InvalidIndexError, match=text):
        lazy.eval()


@KINDS
def test_refusals(kind: Any) -> None:
    ids = kind.new([0])
    for call, error, text in [
        (
            lambda: one_hot(kind.new([0.0]), 2, 1, 0),
            mc.error.UnsupportedDTypeForOpError,
            "one_hot: got dtype f32; takes ids",
        ),
        (lambda: one_hot(ids, -1, 1, 0), mc.error.ShapeMismatchError, "one_hot: got depth -1; takes 0 or more"),
        (lambda: one_hot(ids, 2.0, 1, 0), mc.error.ArgumentTypeError, "one_hot: got depth 2.0; takes an integer"),
        (lambda: one_hot(ids, 2, "1", 0), mc.error.ArgumentTypeError, "one_hot: got '1' for on_value; takes a number"),
        (
            lambda: one_hot(ids, 2, 1, True),
            mc.error.ArgumentTypeError,
            "one_hot: got True for off_value; takes a number",
        ),
        (lambda: one_hot(ids, 2, 1, -1, dtype="u8"), mc.Error, "one_hot: "),
    ]:
        with pytest.raises(error, match=f"^{text}"):
            call()


def test_depth_0() -> None:
    assert one_hot(Tensor([-1, -1]), 0, 1.0, 0.0).dims() == [2, 0]
    with pytest.raises(mc.error.InvalidIndexError, match="the dim is empty"):
        one_hot(Tensor([0]), 0, 1.0, 0.0)

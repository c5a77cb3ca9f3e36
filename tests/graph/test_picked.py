"""``PickedLogSoftmax``: as log-softmax and gather, without the log-probabilities of all classes."""

from __future__ import annotations

from typing import Any

from metal_candle import DType, InvalidIndexError, LazyTensor, Tensor, Var
from metal_candle.graph.operations.picked import PickedLogSoftmax

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, assert_near

RNG = np.random.default_rng(0)
DTYPES = [DType.F64, DType.F32, DType.F16, DType.BF16]


def picked(x: Any, ids: Any) -> Any:
    return x._record(PickedLogSoftmax(), x._lift(ids))


def two_steps(x: Any, ids: Any) -> Any:
    return x.log_softmax(-1).gather(x._lift(ids), len(x.shape) - 1)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows, some of them small and some above what the plain definition is kept for; ids for all or some of them."""
    leading = draw(st.lists(st.integers(1, 5), max_size=2))
    classes, count = draw(st.sampled_from([1, 2, 33, 600, 4097])), draw(st.integers(1, 4))
    reached = [draw(st.integers(1, size)) if draw(st.booleans()) else size for size in leading]
    return (*leading, classes), (*reached, count)


@settings(deadline=None, max_examples=40)
@given(shapes(), st.sampled_from(DTYPES), st.integers(0, 99))
def test_as_log_softmax_and_gather(sizes: tuple[tuple[int, ...], tuple[int, ...]], dtype: DType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(sizes[0]) * 4
    ids = Tensor.new(rng.integers(0, sizes[0][-1], sizes[1]).astype(np.uint32))
    weights = rng.integers(1, 8, sizes[1])
    got: list[tuple[Any, Any]] = []
    for function in (picked, two_steps):
        variable = Var(values, dtype=dtype)
        result = function(LazyTensor.from_tensor(variable), ids)
        assert (tuple(result.shape), result.dtype) == (sizes[1], dtype)
        weight = LazyTensor.new(weights).to_dtype(dtype)
        grads = (result * weight).sum_all().backward()
        got.append((result.numpy(), grads[variable].numpy()))
    tolerance = VALUE[dtype]
    assert_near(got[0][0], got[1][0], tolerance)
    # Weights of up to 7, up to four times the same class in a row.
    assert_near(got[0][1], got[1][1], tolerance._replace(absolute=28 * tolerance.absolute))


@pytest.mark.parametrize("size", [(6, 5), (6, 1000)])
def test_rows_without_a_finite_maximum(size: tuple[int, int]) -> None:
    x = RNG.standard_normal(size).astype(np.float32)
    x[0], x[1, 2], x[2, 4], x[3, 2:], x[4] = -np.inf, np.inf, np.nan, -np.inf, 3e38
    ids = np.array([[0, 2]] * 6, np.int64)
    got, want = (function(Tensor.new(x), Tensor.new(ids)).numpy() for function in (picked, two_steps))
    assert_near(got, want, VALUE[DType.F32])
    assert np.isnan(got[:3]).all()
    assert got[3, 1] == -np.inf


@pytest.mark.parametrize("size", [(4, 5), (4, 1000)])
def test_a_large_common_offset_costs_no_digits(size: tuple[int, int]) -> None:
    x = RNG.integers(-64, 64, size).astype(np.float32) / 16
    ids = Tensor.new(np.array([[1], [2], [0], [4]], np.uint32))
    plain, moved = (picked(Tensor.new(x + offset), ids).numpy() for offset in (0, 2.0**18))
    assert_near(moved, plain, VALUE[DType.F32])


@pytest.mark.parametrize("classes", [5, 1000])
@pytest.mark.parametrize("kind", [DType.U8, DType.U32, DType.I64], ids=str)
def test_the_largest_id_names_nothing(kind: DType, classes: int) -> None:
    variable = Var(RNG.standard_normal((3, classes)).astype(np.float32))
    top = {DType.U8: 2**8, DType.U32: 2**32, DType.I64: 2**63}[kind] - 1
    ids = Tensor.new(np.array([[1, top], [top, top], [2, 3]]), dtype=kind)
    found = []
    for function in (picked, two_steps):
        result = function(LazyTensor.from_tensor(variable), ids)
        found.append((result.numpy(), result.sum_all().backward()[variable].numpy()))
    assert_near(found[0][0], found[1][0], VALUE[DType.F32])
    assert_near(found[0][1], found[1][1], VALUE[DType.F32])
    assert (found[0][0][1] == 0).all()
    assert (found[0][1][1] == 0).all()


def test_ids_outside_are_refused_when_evaluated() -> None:
    x = LazyTensor.new(RNG.standard_normal((2, 5)).astype(np.float32))
    for bad in (5, -1):
        lazy = picked(x, LazyTensor.new(np.array([[0], [bad]], np.int64)))
        with pytest.raises(InvalidIndexError, match=rf"picked_log_softmax: .*{bad}"):
            lazy.eval()
    with pytest.raises(InvalidIndexError):
        picked(LazyTensor.new(np.zeros((2, 0), np.float32)), LazyTensor.new(np.zeros((2, 1), np.int64))).eval()


def test_no_classes_give_what_gather_gives() -> None:
    x, ids = Tensor.new(np.zeros((2, 0), np.float32)), Tensor.new(np.full((2, 1), 255, np.uint8))
    assert_near(picked(x, ids).numpy(), two_steps(x, ids).numpy(), VALUE[DType.F32])


def test_refusals_when_recorded() -> None:
    x = LazyTensor.new(np.zeros((2, 5), np.float32))
    for bad in ((2,), (3, 1), (1, 2, 1)):
        with pytest.raises(ValueError, match=r"picked_log_softmax: got shapes \(2, 5\) and .* takes ids"):
            picked(x, LazyTensor.new(np.zeros(bad, np.int64)))
    with pytest.raises(TypeError, match=r"picked_log_softmax: .* ids of u8, u32, i32 or i64"):
        picked(x, LazyTensor.new(np.zeros((2, 1), np.float32)))
    with pytest.raises(TypeError, match=r"picked_log_softmax: .*i64"):
        picked(LazyTensor.new(np.zeros((2, 5), np.int64)), LazyTensor.new(np.zeros((2, 1), np.int64)))


def test_memory_of_a_large_vocabulary() -> None:
    x, ids = mx.random.normal((256, 32768)), mx.random.randint(0, 32768, (256, 1))
    mx.eval(x, ids)
    operation = PickedLogSoftmax()

    def peak(evaluated: Any) -> int:
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(evaluated())
        return mx.get_peak_memory() - before

    outputs = operation.lower_and_save(x, ids)
    mx.eval(outputs)
    gradient = peak(lambda: operation.vjp(mx.ones((256, 1)), (x, ids), outputs, (True, False))[0])
    # Blocks of the gradient are joined at last, hence twice x; each is 512 KiB and needs some temporaries of its size.
    if mx.default_device() == mx.cpu:
        assert peak(lambda: operation.lower(x, ids)) < 0.6 * x.nbytes
        assert gradient < 3 * x.nbytes

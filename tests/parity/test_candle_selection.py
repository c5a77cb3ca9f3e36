"""Reductions, products and selections of candle's binding beside ours, by property tests."""

from __future__ import annotations

from typing import Any

from metal_candle import DType

import numpy as np
import pytest
from both import DTYPES, Operand, agree, candle, float32
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odd import NUMPY, arrays, shapes

functional = pytest.importorskip("candle.functional")
EXAMPLES = settings(max_examples=25, deadline=None)
# Their sums and products are exact, in every order: halves are left out, which candle adds up in half precision.
EXACT = [DType.U8, DType.U32, DType.I64, DType.F32, DType.F64]
small = st.integers(-20, 20)


def whole(data: st.DataObject, dtype: DType, shape: Any) -> Operand:
    """Whole numbers, for floats with a few infinities and NaN."""
    size = shape if isinstance(shape, tuple) else data.draw(shape)
    if dtype.is_int():
        values = data.draw(hnp.arrays(np.int64, size, elements=st.integers(0, 200), fill=st.nothing()))
    else:
        odd = st.sampled_from([float("nan"), float("inf"), float("-inf"), -0.0])
        elements = st.one_of(small.map(float), small.map(float), small.map(float), odd)
        values = data.draw(hnp.arrays(np.float64, size, elements=elements, fill=st.nothing()))
    return Operand(values.astype(NUMPY[dtype]), dtype)


@EXAMPLES
@given(st.data())
def test_sums(data: st.DataObject) -> None:
    operand = whole(data, data.draw(st.sampled_from(EXACT)), shapes)
    rank = operand.values.ndim
    dims = data.draw(st.lists(st.integers(0, rank), max_size=rank + 1))
    agree(lambda t: t.sum_keepdim(dims), None, [operand])
    agree(lambda t: t.sum_all(), None, [operand])


@EXAMPLES
@given(st.data())
def test_means(data: st.DataObject) -> None:
    operand = whole(data, data.draw(st.sampled_from([DType.F32, DType.F64])), shapes)
    # candle multiplies by the rounded 1/n.
    agree(lambda t: t.mean_all(), None, [operand], ulps=2)


@pytest.mark.parametrize("name", ["max_keepdim", "min_keepdim", "argmax_keepdim", "argmin_keepdim"])
@EXAMPLES
@given(st.data())
def test_extremes(name: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    values = data.draw(arrays(dtype, low=-(2**62) if dtype is DType.I64 else None))
    if dtype.is_float():
        # NaN is one of the differences; what is left has ties, infinities and both zeros.
        values = np.where(np.isnan(values), values.dtype.type(1), float32(values, dtype).clip(-3, 3))
    dim = data.draw(st.integers(-1, values.ndim))
    # An empty tensor whose reduced dim is not empty is one of the differences.
    assume(values.size or not -1 <= dim < values.ndim or values.shape[dim] == 0)
    agree(lambda t: getattr(t, name)(dim), None, [Operand(values, dtype)])


@EXAMPLES
@given(st.data())
def test_matrix_products(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([DType.F32, DType.F64, DType.F16]))
    m, k, n = (data.draw(st.integers(0, 4)) for _ in range(3))
    left, right = (data.draw(st.lists(st.integers(1, 3), max_size=2)) for _ in range(2))
    if data.draw(st.booleans()):
        right = left
    wrong = data.draw(st.sampled_from([0, 0, 0, 1]))
    made = [
        data.draw(hnp.arrays(np.int64, shape, elements=st.integers(-5, 5), fill=st.nothing()))
        for shape in ((*left, m, k), (*right, k + wrong, n))
    ]
    agree(lambda t, o: t.matmul(o), None, [Operand(values.astype(NUMPY[dtype]), dtype) for values in made])


@EXAMPLES
@given(st.data())
def test_softmax(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([DType.F32, DType.F64]))
    operand = whole(data, dtype, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    dim = data.draw(st.integers(-1, operand.values.ndim))
    ulps = 60 if dtype is DType.F32 else 6000
    agree(lambda t: functional.softmax(t, dim), lambda t: t.softmax(dim), [operand], ulps)


@EXAMPLES
@given(st.data())
def test_where_cond(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    conditions = data.draw(st.sampled_from([DType.U8, DType.U32, DType.I64]))
    chosen = data.draw(hnp.arrays(np.int64, shape, elements=st.sampled_from([0, 0, 1, 7]), fill=st.nothing()))
    dtype = data.draw(st.sampled_from(DTYPES))
    values = [float32(data.draw(arrays(dtype, shape, low=0)), dtype) for _ in range(2)]
    values = [np.clip(v, 0, 2.0**120) if dtype is DType.F64 else v for v in values]
    # Zeros have their sign, NaN and infinities pass.
    operands = [Operand(chosen, conditions), *[Operand(v, dtype) for v in values]]
    agree(lambda c, t, o: c.where_cond(t, o), None, operands)


@EXAMPLES
@given(st.data())
def test_index_select(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    dim = data.draw(st.integers(-1, len(shape) - 1))
    # Now and then one behind the last, which raises.
    ids = data.draw(st.lists(st.integers(0, shape[dim] - data.draw(st.sampled_from([1, 1, 1, 0]))), max_size=5))
    operands = [
        Operand(np.arange(np.prod(shape)).reshape(shape), data.draw(st.sampled_from(DTYPES))),
        Operand(np.array(ids, np.int64), data.draw(st.sampled_from([DType.U8, DType.U32, DType.I64]))),
    ]
    agree(lambda t, i: t.index_select(i, dim), None, operands)


@EXAMPLES
@given(st.data())
def test_gather(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    dim = data.draw(st.integers(0, len(shape) - 1))
    chosen = list(shape)
    chosen[dim] = data.draw(st.integers(1, 4))
    last = shape[dim] - data.draw(st.sampled_from([1, 1, 1, 0]))
    ids = data.draw(hnp.arrays(np.int64, tuple(chosen), elements=st.integers(0, last), fill=st.nothing()))
    operands = [
        Operand(np.arange(np.prod(shape)).reshape(shape), data.draw(st.sampled_from(DTYPES))),
        Operand(ids, data.draw(st.sampled_from([DType.U8, DType.U32, DType.I64]))),
    ]
    agree(lambda t, i: t.gather(i, dim), None, operands)


@EXAMPLES
@given(st.data())
def test_joining(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    dim = data.draw(st.integers(-1, rank - 1))
    common = data.draw(st.lists(st.integers(0, 3), min_size=rank, max_size=rank))
    dtype = data.draw(st.sampled_from(DTYPES))
    operands = []
    for _ in range(data.draw(st.integers(2, 4))):
        shape = list(common)
        shape[dim] = data.draw(st.integers(0, 3))
        operands.append(Operand(np.arange(np.prod(shape, dtype=int)).reshape(shape), dtype))
    agree(lambda *ts: candle.cat(list(ts), dim), lambda *ts: type(ts[0]).cat(list(ts), dim), operands)
    same = [operands[0]] * len(operands)
    agree(lambda *ts: candle.stack(list(ts), rank), lambda *ts: type(ts[0]).stack(list(ts), rank), same)

"""``scatter``, ``scatter_add``, ``index_add``, ``slice_scatter``, ``slice_assign``: values, ids, errors, gradients."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var
from metal_candle.graph.operation import Operation

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slope import assert_slopes

IDS = [DType.U8, DType.I16, DType.U32, DType.I32, DType.I64]
KINDS = [Tensor, LazyTensor]


def written(x: Any, ids: Any, source: Any, dim: int, add: bool) -> Any:
    """What NumPy gives, one element after the other."""
    result = x.copy()
    for place in np.ndindex(*ids.shape):
        target = (*place[:dim], ids[place], *place[dim + 1 :])
        result[target] = result[target] + source[place] if add else source[place]
    return result


@st.composite
def scatters(draw: st.DrawFn) -> tuple[Any, Any, Any, int]:
    """A tensor, ids with repeats, a source and the dim; whole numbers, which every dtype holds and adds exactly."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    dim = draw(st.integers(0, len(shape) - 1))
    source = list(shape)
    source[dim] = draw(st.integers(0, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = rng.integers(0, shape[dim], source)
    return rng.integers(0, 8, shape), ids, rng.integers(0, 8, source), dim


@settings(max_examples=120, deadline=None)
@given(scatters(), st.sampled_from(list(DType)), st.sampled_from(IDS), st.sampled_from(KINDS), st.booleans())
def test_scatter_is_numpy_s_loop_in_every_dtype(
    case: Any, dtype: DType, ids_dtype: DType, kind: Any, add: bool
) -> None:
    x, ids, source, dim = case
    tensor, values = (kind.new(array, Device.Cpu, dtype) for array in (x, source))
    places = kind.new(ids, Device.Cpu, ids_dtype)
    got = (tensor.scatter_add if add else tensor.scatter)(places, values, dim)
    assert (got.dtype, tuple(got.shape)) == (dtype, x.shape)
    np.testing.assert_array_equal(got.numpy().astype(np.int64), written(x, ids, source, dim, add))


@settings(max_examples=60, deadline=None)
@given(scatters(), st.sampled_from(list(DType)), st.sampled_from(IDS), st.sampled_from(KINDS))
def test_index_add_is_numpy_s_in_every_dtype(case: Any, dtype: DType, ids_dtype: DType, kind: Any) -> None:
    x, ids, source, dim = case
    row = np.moveaxis(ids, dim, -1)[(0,) * (ids.ndim - 1)]
    got = kind.new(x, Device.Cpu, dtype).index_add(
        kind.new(row, Device.Cpu, ids_dtype), kind.new(source, Device.Cpu, dtype), dim
    )
    want = x.copy()
    np.add.at(want, (*[slice(None)] * dim, row), source)
    assert got.dtype is dtype
    np.testing.assert_array_equal(got.numpy().astype(np.int64), want)


def test_of_many_writes_to_one_place_the_last_wins() -> None:
    """Thousands of them, so that threads would show."""
    rng = np.random.default_rng(0)
    ids, source = rng.integers(0, 7, (50_000, 2)), rng.normal(size=(50_000, 2)).astype(np.float32)
    x = np.zeros((7, 2), np.float32)
    got = Tensor(x).scatter(Tensor(ids), Tensor(source), 0)
    np.testing.assert_array_equal(got.numpy(), written(x, ids, source, 0, add=False))


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16], ids=str)
def test_sums_of_halves_are_kept_in_float32(dtype: DType) -> None:
    """Added one by one in bfloat16, 256 + 1 is 256."""
    ids, ones = Tensor([0] * 4096), Tensor.ones((4096,), dtype)
    assert Tensor.zeros((1,), dtype).index_add(ids, ones, 0).to_dtype("f32").to_vec1() == [4096.0]
    assert Tensor.zeros((1,), dtype).scatter_add(ids, ones, 0).to_dtype("f32").to_vec1() == [4096.0]
    w = Var.zeros((1,), dtype)
    for chosen in (w.index_select(ids, 0), w.gather(ids, 0)):
        assert chosen.backward()[w].to_dtype("f32").to_vec1() == [4096.0]
    table = Var.zeros((1, 1), dtype)
    assert table.embedding(ids).backward()[table].to_dtype("f32").to_vec2() == [[4096.0]]


def test_small_integers_wrap() -> None:
    ids = Tensor([0, 0, 1])
    assert Tensor([250, 1], dtype="u8").index_add(ids, Tensor([5, 5, 1], dtype="u8"), 0).to_vec1() == [4, 2]
    assert Tensor([32767], dtype="i16").scatter_add(Tensor([0]), Tensor([1], dtype="i16"), 0).to_vec1() == [-32768]
    big = 2**62
    assert Tensor([big]).scatter_add(Tensor([0, 0]), Tensor([1, 2]), 0).to_vec1() == [big + 3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", IDS, ids=str)
def test_the_largest_id_is_skipped(kind: Any, dtype: DType) -> None:
    top = mx.iinfo(dtype.mlx_).max
    x, source = kind.new([-0.0, 1.0, 2.0]), kind.new([10.0, 20.0])
    ids = kind.new([top, 1], dtype=dtype)
    assert x.scatter(ids, source, 0).tolist() == [0.0, 20.0, 2.0]
    for added in (x.scatter_add(ids, source, 0), x.index_add(ids, source, 0)):
        assert added.tolist() == [0.0, 21.0, 2.0]
        assert np.signbit(added.numpy()[0]), "a place nothing is added to is as it was"
    nothing = kind.new([top], dtype=dtype)
    empty = kind.new(np.zeros((0,), np.float32))
    assert empty.scatter(nothing, kind.new([1.0]), 0).tolist() == []
    assert empty.scatter_add(nothing, kind.new([1.0]), 0).tolist() == []
    assert empty.index_add(nothing, kind.new([1.0]), 0).tolist() == []


def test_the_largest_id_has_no_gradient() -> None:
    for name in ("scatter", "scatter_add", "index_add"):
        x, source = Var([1.0, 2.0, 3.0]), Var([10.0, 20.0])
        grads = getattr(x, name)(Tensor([255, 1], dtype="u8"), source, 0).backward()
        assert grads[x].to_vec1() == ([1.0, 0.0, 1.0] if name == "scatter" else [1.0, 1.0, 1.0])
        assert grads[source].to_vec1() == [0.0, 1.0]
        x = Var(np.zeros((0,), np.float32))
        grads = getattr(x, name)(Tensor([255, 255], dtype="u8"), source, 0).backward()
        assert grads[source].to_vec1() == [0.0, 0.0]


@pytest.mark.parametrize("wrong", [3, -1, 10**6])
@pytest.mark.parametrize("name", ["scatter", "scatter_add", "index_add"])
def test_an_id_outside_raises_eager_at_the_call_lazy_at_eval(name: str, wrong: int) -> None:
    x, source, ids = Tensor([1.0, 2.0, 3.0]), Tensor([10.0, 20.0]), Tensor([0, wrong])
    text = rf"{name}: index {wrong} is out of range; takes 0\.\.2"
    with pytest.raises(IndexError, match=text):
        getattr(x, name)(ids, source, 0)
    lazy = getattr(LazyTensor.from_tensor(x), name)(ids, source, 0)
    with pytest.raises(mc.Error, match=text):
        lazy.eval()


@pytest.mark.parametrize("record", [Operation.Scatter, Operation.ScatterAdd, Operation.IndexAdd])
def test_inside_mx_compile_ids_outside_are_skipped(record: Any) -> None:
    with mx.stream(mx.cpu):
        run = mx.compile(lambda ids: record(0).lower(mx.zeros((3,)), ids, mx.array([1.0, 2.0, 4.0])))
        assert run(mx.array([1, 99, -5])).tolist() == [0.0, 1.0, 0.0]
        assert run(mx.array([1, 1, 0])).tolist() == [4.0, 2.0 if record is Operation.Scatter else 3.0, 0.0]


@pytest.mark.parametrize("name", ["scatter", "scatter_add"])
def test_gradients_with_repeated_ids(name: str) -> None:
    rng = np.random.default_rng(3)
    for shape, dim in [((3, 4), 0), ((2, 3, 2), 1), ((5,), -1)]:
        source = list(shape)
        source[dim] = 6
        ids = Tensor(rng.integers(0, shape[dim] - 1, source))
        assert_slopes(
            lambda x, s, ids=ids, dim=dim: getattr(x, name)(ids, s, dim),
            rng.normal(size=shape),
            rng.normal(size=source),
        )


def test_index_add_s_gradients_with_repeated_ids() -> None:
    rng = np.random.default_rng(3)
    ids = Tensor([2, 0, 2, 2])
    assert_slopes(lambda x, s: x.index_add(ids, s, 1), rng.normal(size=(2, 3)), rng.normal(size=(2, 4)))
    # One tensor as both, so that its gradients meet.
    assert_slopes(lambda x: x.index_add(Tensor([1, 1]), x, 0), rng.normal(size=(2, 3)))


def test_slice_scatter_and_slice_assign() -> None:
    rng = np.random.default_rng(0)
    x, part = rng.normal(size=(4, 5, 6)), rng.normal(size=(4, 2, 6))
    for kind in KINDS:
        tensor, src = kind.new(x, Device.Cpu), kind.new(part, Device.Cpu)
        want = x.copy()
        want[:, 3:5] = part
        np.testing.assert_array_equal(tensor.slice_scatter(src, 1, 3).numpy(), want)
        np.testing.assert_array_equal(tensor.slice_scatter(src, -2, 3).numpy(), want)
        for ranges in (
            [slice(None), slice(3, 5), slice(None)],
            (range(4), (3, 5), slice(0, 6, 1)),
            [slice(-4, None), slice(-2, 5), [0, 6]],
        ):
            np.testing.assert_array_equal(tensor.slice_assign(ranges, src).numpy(), want)
        np.testing.assert_array_equal(
            tensor.transpose(0, 1).slice_scatter0(src.transpose(0, 1), 3).numpy(), want.swapaxes(0, 1)
        )
        want = x.copy()
        want[1:2, -1:, 2:4] = part[:1, :1, :2]
        got = tensor.slice_assign((1, -1, (2, 4)), src[:1, :1, :2])
        np.testing.assert_array_equal(got.numpy(), want)
        np.testing.assert_array_equal(tensor.numpy(), x)
        assert kind.new([1, 2, 3]).slice_assign(range(1, 3), kind.new([5, 6])).tolist() == [1, 5, 6]
        assert kind.new(1.0).slice_assign((), kind.new(2.0)).tolist() == 2.0


@pytest.mark.parametrize("dtype", list(DType), ids=str)
def test_blocks_are_assigned_in_every_dtype(dtype: DType) -> None:
    got = Tensor.new([[1, 2], [3, 4]], Device.Cpu, dtype).slice_scatter(Tensor.new([[7], [9]], Device.Cpu, dtype), 1, 1)
    assert got.dtype is dtype
    assert got.tolist() == [[1, 7], [3, 9]]


def test_gradients_of_blocks() -> None:
    rng = np.random.default_rng(3)
    x, part = rng.normal(size=(3, 4)), rng.normal(size=(3, 2))
    assert_slopes(lambda x, s: x.slice_scatter(s, 1, 1), x, part)
    assert_slopes(lambda x, s: x.slice_scatter0(s, 1), x, part[:2, :1].repeat(4, 1))
    assert_slopes(lambda x, s: x.slice_assign((slice(0, 2), slice(1, 3)), s), x, part[:2])


X, S, IDENTIFIERS = np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), np.zeros((2, 4), np.int64)
ERRORS: list[tuple[type[mc.Error], str, Callable[[Any, Any, Any], Any]]] = [
    (
        mc.error.UnsupportedDTypeForOpError,
        "scatter: got dtype f32; takes ids of u8, i16, u32, i32 or i64",
        lambda x, s, i: x.scatter(s, s, 1),
    ),
    (
        mc.error.DTypeMismatchBinaryOpError,
        "scatter: dtypes differ, lhs f32, rhs i64",
        lambda x, s, i: x.scatter(i, i, 1),
    ),
    (
        mc.error.ShapeMismatchBinaryOpError,
        "scatter (self, src): got shapes (2, 3) and (2, 4); takes a source of the tensor's shape but in dim 0",
        lambda x, s, i: x.scatter(i, s, 0),
    ),
    (
        mc.error.ShapeMismatchBinaryOpError,
        "scatter_add (indexes, src): got shapes (4, 2) and (2, 4); takes an index for each element of the source",
        lambda x, s, i: x.scatter_add(i.t(), s, 1),
    ),
    (
        mc.error.DimOutOfRangeError,
        "scatter_add: dim 2 is out of range for shape (2, 3)",
        lambda x, s, i: x.scatter_add(i, s, 2),
    ),
    (mc.error.DimOutOfRangeError, "index_add: dim -3 is out of range", lambda x, s, i: x.index_add(i[0], s, -3)),
    (mc.error.UnexpectedNumberOfDimsError, "index_add: indexes: got rank 2", lambda x, s, i: x.index_add(i, s, 1)),
    (
        mc.error.ShapeMismatchBinaryOpError,
        "index_add (indexes, src): got shapes (2,) and (2, 4); takes an index for each entry of the source's dim 1",
        lambda x, s, i: x.index_add(i[:, 0], s, 1),
    ),
    (mc.error.ShapeMismatchBinaryOpError, "index_add (self, src): got shapes", lambda x, s, i: x.index_add(i[0], s, 0)),
    (mc.error.DTypeMismatchBinaryOpError, "index_add: dtypes differ", lambda x, s, i: x.index_add(i[0], i, 1)),
    (mc.error.UnsupportedDTypeForOpError, "index_add: got dtype f32", lambda x, s, i: x.index_add(s[0], s, 1)),
    (
        mc.error.ShapeMismatchBinaryOpError,
        "slice_scatter (self, src): got shapes (2, 3) and (2, 4); takes a src of the tensor's shape but in dim 1, "
        "where 0 + its size <= 3",
        lambda x, s, i: x.slice_scatter(s, 1, 0),
    ),
    (mc.error.ShapeMismatchBinaryOpError, "slice_scatter0 (self, src): got", lambda x, s, i: x.slice_scatter0(x, 1)),
    (
        mc.error.ShapeMismatchError,
        "slice_scatter: got start -1; takes 0 or more",
        lambda x, s, i: x.slice_scatter(x, 0, -1),
    ),
    (
        mc.error.UnexpectedNumberOfDimsError,
        "slice_scatter: src: got rank 1",
        lambda x, s, i: x.slice_scatter(x[0], 0, 0),
    ),
    (mc.error.DTypeMismatchBinaryOpError, "slice_scatter0: dtypes differ", lambda x, s, i: x.slice_scatter0(i, 0)),
    (mc.error.DimOutOfRangeError, "slice_scatter: dim 2", lambda x, s, i: x.slice_scatter(x, 2, 0)),
    (
        mc.error.ShapeMismatchError,
        "slice_assign: got 1 ranges for shape (2, 3); takes one for each dim",
        lambda x, s, i: x.slice_assign([slice(0, 1)], x),
    ),
    (
        mc.error.ShapeMismatchError,
        "slice_assign: got range slice(0, 4, None) in dim 1 of shape (2, 3); takes ranges of step 1, not empty, inside",
        lambda x, s, i: x.slice_assign([slice(0, 2), slice(0, 4)], s),
    ),
    (
        mc.error.ShapeMismatchError,
        "slice_assign: got range (1, 1) in dim 0",
        lambda x, s, i: x.slice_assign([(1, 1), (0, 3)], x),
    ),
    (
        mc.error.ShapeMismatchError,
        "slice_assign: got range range(0, 3, 2)",
        lambda x, s, i: x.slice_assign([0, range(0, 3, 2)], x),
    ),
    (mc.error.ShapeMismatchError, "slice_assign: got range 2 in dim 0", lambda x, s, i: x.slice_assign([2, 0], x)),
    (mc.error.ArgumentTypeError, "slice_assign: got 'a' for a range; ", lambda x, s, i: x.slice_assign(["a", 0], x)),
    (
        mc.error.ShapeMismatchBinaryOpError,
        "slice_assign (ranges, src): got shapes (1, 3) and (2, 3); takes equal shapes",
        lambda x, s, i: x.slice_assign([0, slice(None)], x),
    ),
    (
        mc.error.DTypeMismatchBinaryOpError,
        "slice_assign: dtypes differ",
        lambda x, s, i: x.slice_assign([0, 0], i[:1, :1]),
    ),
    (mc.Error, "slice_assign: got float for an operand; takes a tensor", lambda x, s, i: x.slice_assign([0, 0], 1.0)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("error", "text", "call"), ERRORS, ids=[case[1].split(";")[0] for case in ERRORS])
def test_refused_when_recorded(
    kind: Any, error: type[mc.Error], text: str, call: Callable[[Any, Any, Any], Any]
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call(kind.new(X), kind.new(S), kind.new(IDENTIFIERS))

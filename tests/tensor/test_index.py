"""``t[...]`` against NumPy, and the methods that name a part."""

from __future__ import annotations

import re
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slope import assert_slopes

KINDS = [Tensor, LazyTensor]
IDS = [DType.U8, DType.U32, DType.I32, DType.I64]
SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def indexed(draw: st.DrawFn) -> tuple[tuple[int, ...], Any]:
    """A shape and something that may stand between the brackets for it."""
    shape = draw(SHAPES)
    items: list[Any] = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        options = [st.slices(size)]
        if size:
            options.append(st.integers(-size, size - 1))
        items.append(draw(st.one_of(options)))
    for _ in range(draw(st.integers(0, 2))):
        items.insert(draw(st.integers(0, len(items))), None)
    if draw(st.booleans()):
        items.append(...)
    return shape, items[0] if len(items) == 1 and draw(st.booleans()) else tuple(items)


@settings(max_examples=200, deadline=None)
@given(indexed())
def test_basic_indexing_is_numpy_s(case: tuple[tuple[int, ...], Any]) -> None:
    shape, at = case
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    want = array[at]
    for kind in (Tensor, LazyTensor):
        got = kind.new(array)[at]
        assert tuple(got.shape) == want.shape
        np.testing.assert_array_equal(got.numpy(), want)
        assert tuple(kind.new(array).i(at).shape) == want.shape


def taken(array: Any, items: list[Any]) -> Any:
    """What each item gives on its own dim, dim by dim, as NumPy takes it."""
    dim = 0
    for item in items:
        if item is None:
            array = np.expand_dims(array, dim)
            dim += 1
        elif isinstance(item, slice):
            array = array[(slice(None),) * dim + (item,)]
            dim += 1
        else:
            array = np.take(array, item, dim)
            dim += np.ndim(item)
    return array


@st.composite
def mixed(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Any]]:
    """A shape and an item for some of its dims, arrays of ids of several ranks among them."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple))
    items: list[Any] = []
    for size in shape[: draw(st.integers(1, len(shape)))]:
        ids = st.integers(-size, size - 1)
        rows = st.tuples(st.integers(0, 2), st.integers(1, 3)).flatmap(
            lambda rc, ids=ids: st.lists(  # type: ignore[misc]
                st.lists(ids, min_size=rc[1], max_size=rc[1]), min_size=rc[0], max_size=rc[0]
            ).map(lambda lists, rc=rc: np.array(lists, np.int64).reshape(rc))
        )
        flat = st.lists(ids, max_size=4).map(lambda values: np.array(values, np.int64))
        items.append(draw(st.one_of(st.slices(size), ids, flat, flat, rows, ids.map(np.array))))
    for _ in range(draw(st.integers(0, 2))):
        items.insert(draw(st.integers(0, len(items))), None)
    return shape, items


@settings(max_examples=200, deadline=None)
@given(mixed(), st.sampled_from(KINDS), st.sampled_from(IDS), st.data())
def test_every_item_acts_on_its_own_dim(case: Any, kind: Any, dtype: DType, data: st.DataObject) -> None:
    """Ids as tensors of every ids dtype, as lists and as NumPy arrays."""
    shape, items = case
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    given_items, dim = [], 0
    for item in items:
        given_item = item
        if isinstance(item, np.ndarray):
            form = data.draw(st.sampled_from(["tensor", "list", "numpy"]))
            if form == "tensor":
                given_item = kind.new(np.where(item < 0, item + shape[dim], item), dtype=dtype)
            elif form == "list" and item.ndim:
                given_item = item.tolist() if item.size else item
        given_items.append(given_item)
        dim += item is not None
    masks = len(items) == 1 and dtype is DType.U8 and np.shape(items[0]) == shape
    if masks:
        return
    got = kind.new(array)[tuple(given_items)]
    want = taken(array, items)
    assert tuple(got.shape) == want.shape
    np.testing.assert_array_equal(got.numpy(), want)


def test_ids_in_several_dims_give_every_combination() -> None:
    """candle's rule; NumPy would pair them off."""
    array = np.arange(12).reshape(3, 4)
    rows, columns = [0, 2], [3, 1, 1]
    for first, second in [(rows, columns), (Tensor(rows), Tensor(columns)), (np.array(rows), columns)]:
        np.testing.assert_array_equal(Tensor(array)[first, second].numpy(), array[np.ix_(rows, columns)])


def test_what_numpy_numbers_and_ranges_name() -> None:
    array = np.arange(12).reshape(3, 4)
    x = Tensor(array)
    assert x[np.int32(-1), np.uint8(2)].to_scalar() == 10
    assert x[range(2, 0, -1)].tolist() == array[[2, 1]].tolist()
    assert x[[]].dims() == [0, 4]
    assert x[[[0], [1]], ..., [1, 2]].dims() == [2, 1, 2]
    assert x[Tensor(1)].to_vec1() == [4, 5, 6, 7]
    assert x[...] is x
    assert x[:, :] is x


def test_a_lazy_index_and_a_lazy_tensor() -> None:
    lazy, ids = LazyTensor.new([[1.0, 2.0], [3.0, 4.0]]), LazyTensor.new([1, 0])
    assert lazy[ids].tolist() == lazy[Tensor([1, 0])].tolist() == [[3.0, 4.0], [1.0, 2.0]]
    with pytest.raises(mc.Error, match="got a LazyTensor beside an eager tensor"):
        Tensor([1.0, 2.0])[ids]


def test_compiled_with_ids_as_an_argument_and_as_a_list() -> None:
    compiled = mc.compile(lambda x, ids: x[ids, 1:] + x[[0, -1]][:, 1:])
    got = compiled(Tensor([[1, 2], [3, 4]]), Tensor([1, 0]))
    assert got.to_vec2() == [[6], [6]]


def test_the_largest_id_gives_zeros_and_others_outside_raise() -> None:
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    assert x[:, Tensor([0, 255], dtype="u8")].to_vec2() == [[1.0, 0.0], [3.0, 0.0]]
    lazy = LazyTensor.from_tensor(x)[Tensor([2])]
    with pytest.raises(mc.error.InvalidIndexError, match=r"index_select: index 2 is out of range; takes 0\.\.1"):
        lazy.eval()
    with pytest.raises(mc.error.InvalidIndexError, match=r"index_select: index -1"):
        x[Tensor([-1])]


def test_gradients_through_every_kind_of_index() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 2))
    ids = Tensor([[1, 1], [0, 2]])
    for at in [
        1,
        (..., -1),
        (slice(None, None, -1), slice(3, None, -2)),
        (slice(2, 0, -1), None, 2),
        ids,
        (slice(None), [0, -1, 0], [1, 1]),
        (np.array([2, 2]), slice(1, 3), Tensor(0)),
        (slice(0, 0),),
    ]:
        assert_slopes(lambda t, at=at: t[at], x)


def test_iterating_and_indexing_a_variable_add_up() -> None:
    w = Var([[1.0, 2.0], [3.0, 4.0]])
    first, second = w
    loss = (first * second + w[0] * 10.0).sum_all()
    assert loss.backward()[w].to_vec2() == [[13.0, 14.0], [1.0, 2.0]]


ERRORS: list[tuple[type[mc.Error], str, Any]] = [
    (mc.Error, "index: got bool; takes ints, slices, `...`, None, lists and tensors of ids; where_cond", True),
    (mc.Error, "index: got bool; ", np.True_),
    (mc.Error, "index: got list of bool; takes", [True, False]),
    (mc.Error, "index: got ndarray of bool; takes", np.ones((2, 3), bool)),
    (mc.Error, "index: got list of float64; takes", [0.0, 1.0]),
    (mc.Error, "index: got lists of different lengths", [[0], [0, 1]]),
    (mc.Error, "index: got float; takes", 1.0),
    (mc.Error, "index: got str; takes", "a"),
    (mc.Error, "index: got slice(None, None, 0); slice step cannot be zero", slice(None, None, 0)),
    (mc.Error, "index: got slice(0.5, None, None); slice indices must be integers", slice(0.5, None)),
    (mc.error.InvalidIndexError, "index: index 2 is out of range; takes 0..1", 2),
    (mc.error.InvalidIndexError, "index: index -4 is out of range; takes 0..2", (0, -4)),
    (mc.error.InvalidIndexError, "index: index 2 is out of range; takes 0..1", [0, 2]),
    (mc.error.InvalidIndexError, "index: index -3 is out of range", np.array([-3], np.int8)),
    (mc.error.InvalidIndexError, "index: index 18446744073709551615 is", np.array([2**64 - 1], np.uint64)),
    (mc.error.DimOutOfRangeError, "index: dim 2 is out of range for shape (2, 3)", (0, 0, [0])),
    (mc.Error, "index: got two `...`; takes one", (..., 0, ...)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("error", "text", "at"), ERRORS, ids=[case[1] for case in ERRORS])
def test_refused_when_recorded(kind: Any, error: type[mc.Error], text: str, at: Any) -> None:
    with pytest.raises(error, match=re.escape(text)):
        kind.new(np.zeros((2, 3), np.float32))[at]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_is_refused_and_where_cond_named(kind: Any) -> None:
    x = kind.new([[1.0, -2.0], [3.0, 4.0]])
    with pytest.raises(mc.Error, match=r"index: got a u8 tensor of the tensor's own shape \(2, 2\).*where_cond"):
        x[x > 0.0]
    with pytest.raises(mc.Error, match=r"own shape \(2,\).*index_select takes u8 ids"):
        x[0][kind.new([1, 0], dtype="u8")]
    with pytest.raises(mc.Error, match="index_select: got dtype f32; takes ids"):
        x[x]


def test_an_ellipsis_stands_for_the_dims_between() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(Tensor(array)[0, ..., 1].numpy(), array[0, ..., 1])
    np.testing.assert_array_equal(Tensor(array)[..., None].numpy(), array[..., None])


@pytest.mark.parametrize(
    "at",
    [
        lambda ids: ids,
        lambda ids: (slice(None), ids),
        lambda ids: (0, ids),
        lambda ids: (slice(1, None), slice(None), ids),
        lambda ids: (..., ids),
    ],
)
def test_tensors_of_ids(at: Any) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    ids = np.array([1, 0, 1])
    np.testing.assert_array_equal(Tensor(array)[at(Tensor(ids))].numpy(), array[at(ids)])


def test_get_and_chunk() -> None:
    x = Tensor(np.arange(14).reshape(7, 2))
    assert x.get(3).to_vec1() == [6, 7]
    assert Tensor(5).get(9).to_scalar() == 5
    for chunks in (1, 2, 3, 7, 9):
        want = [part for part in np.array_split(np.arange(14).reshape(7, 2), chunks) if part.size]
        got = x.chunk(chunks, 0)
        assert [part.tolist() for part in got] == [part.tolist() for part in want]


@pytest.mark.parametrize("kind", KINDS)
def test_get_on_dim_and_its_bounds(kind: Any) -> None:
    x = kind.new(np.arange(6).reshape(2, 3))
    assert x.get_on_dim(1, 2).tolist() == [2, 5]
    assert x.get_on_dim(-2, 1).tolist() == [3, 4, 5]
    with pytest.raises(mc.error.DimOutOfRangeError, match="get_on_dim: dim 2"):
        x.get_on_dim(2, 0)
    for call in (lambda: x.get_on_dim(0, 2), lambda: x.get(2), lambda: x.get(-1), lambda: x.narrow(1, 4, 0)):
        with pytest.raises(mc.error.NarrowInvalidArgsError):
            call()
    assert x.narrow(1, 3, 0).dims() == [2, 0]
    with pytest.raises(mc.error.DimOutOfRangeError, match="chunk: dim 2"):
        x.chunk(2, 2)
    assert x.narrow(1, 0, 0).chunk(3, 1) == []
    with pytest.raises(mc.error.ArgumentTypeError, match=r"narrow: got start 0\.5; takes an integer"):
        x.narrow(0, 0.5, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_meshgrid(kind: Any) -> None:
    a, b, c = kind.new([1, 2]), kind.new([3, 4, 5]), kind.new([6])
    for got, want in zip(kind.meshgrid([a, b], False), np.meshgrid([1, 2], [3, 4, 5], indexing="ij")):
        np.testing.assert_array_equal(got.numpy(), want)
    for got, want in zip(kind.meshgrid([a, b], True), np.meshgrid([1, 2], [3, 4, 5], indexing="xy")):
        np.testing.assert_array_equal(got.numpy(), want)
    # Of three all dims are reversed, as in candle.
    grids = kind.meshgrid([a, b, c], True)
    assert [grid.dims() for grid in grids] == [[1, 3, 2]] * 3
    assert grids[0].tolist() == [[[1, 2]] * 3]
    with pytest.raises(mc.error.OpRequiresAtLeastTwoTensorsError, match="meshgrid: got 1 tensor; takes at least two"):
        kind.meshgrid([a], False)
    with pytest.raises(mc.error.UnexpectedNumberOfDimsError, match="meshgrid: got rank 2"):
        kind.meshgrid([a, a.unsqueeze(0)], False)


def test_meshgrid_s_gradient() -> None:
    def grids(a: Any, b: Any) -> Any:
        first, second = type(a).meshgrid([a, b], True)
        return first * second.sqr()

    assert_slopes(grids, [1.0, 2.0], [0.5, 1.0, 3.0])


@pytest.mark.parametrize("kind", KINDS)
def test_cat_and_stack_refuse(kind: Any) -> None:
    x = kind.new([[1.0]])
    with pytest.raises(mc.error.UnexpectedNumberOfDimsError, match=r"cat: got rank 1, shape \(1,\); takes rank 2"):
        kind.cat([x, x[0]], 0)
    with pytest.raises(mc.error.DimOutOfRangeError, match="cat: dim 2"):
        kind.cat([x, x], 2)
    with pytest.raises(mc.error.OpRequiresAtLeastOneTensorError, match="stack: got no tensors"):
        kind.stack([], 0)
    with pytest.raises(mc.error.DimOutOfRangeError, match="stack: dim 3"):
        kind.stack([x, x], 3)
    with pytest.raises(mc.Error, match="cat: got list for an operand; takes a tensor"):
        kind.cat([x, [[1.0]]], 0)
    assert kind.stack([x, x], 2).dims() == [1, 1, 2]


def test_flattening() -> None:
    x = Tensor.zeros((2, 3, 4, 5))
    assert x.flatten(1, 2).dims() == [2, 12, 5]
    assert x.flatten(2, 1) is x
    assert x.flatten_to(1).dims() == [6, 4, 5]
    assert x.flatten_from(-2).dims() == [2, 3, 20]
    assert x.flatten_all().dims() == [120]
    assert Tensor(1.0).flatten(0, 0).dims() == [1]


def test_stack_cat_and_broadcast() -> None:
    a, b = Tensor([1.0, 2.0]), Tensor([3.0, 4.0])
    assert Tensor.stack([a, b], 0).to_vec2() == [[1.0, 2.0], [3.0, 4.0]]
    assert Tensor.stack([a, b], -1).to_vec2() == [[1.0, 3.0], [2.0, 4.0]]
    assert Tensor.cat([a], 0) is a
    assert Tensor.cat([a, b, a], 0).to_vec1() == [1.0, 2.0, 3.0, 4.0, 1.0, 2.0]
    assert a.broadcast_left((2, 1)).dims() == [2, 1, 2]
    assert Tensor([[1.0, 2.0]]).t().to_vec2() == [[1.0], [2.0]]
    assert a.softmax_stable().to_vec1() == a.softmax_fused().to_vec1() == a.softmax(-1).to_vec1()

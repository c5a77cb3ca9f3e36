"""What moves elements, against NumPy over shapes, dtypes and odd values: bit for bit, lazy and eager; and gradients."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import D, Device, DType, LazyTensor, Tensor, Var
from metal_candle.graph.node import layout_of

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slope import assert_slopes

KINDS = [Tensor, LazyTensor]
ODD = [float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 1.5, -2.0]


@st.composite
def tensors(draw: st.DrawFn, least_rank: int = 1, least_size: int = 0) -> tuple[Any, Any]:
    """A tensor of any kind and dtype, and the same as NumPy."""
    shape = draw(st.lists(st.integers(least_size, 4), min_size=least_rank, max_size=4))
    dtype, kind = draw(st.sampled_from(list(DType))), draw(st.sampled_from(KINDS))
    rng, count = np.random.default_rng(draw(st.integers(0, 2**32))), int(np.prod(shape))
    values = rng.choice(ODD, count) if dtype.is_float() else rng.integers(0, 256, count)
    tensor = kind.new(values.reshape(shape), Device.Cpu, dtype)
    return tensor, tensor.numpy()


def assert_same(got: Any, want: Any, tensor: Any) -> None:
    assert isinstance(got, Tensor) is isinstance(tensor, Tensor)
    assert got.dtype is tensor.dtype
    array = got.numpy()
    assert tuple(got.shape) == array.shape == want.shape
    np.testing.assert_array_equal(array, want)
    if got.dtype.is_float():
        np.testing.assert_array_equal(np.signbit(array), np.signbit(want))


def pads(x: Any, dim: int, left: int, right: int) -> list[tuple[int, int]]:
    return [(left, right) if i == dim % x.ndim else (0, 0) for i in range(x.ndim)]


def windows(x: Any, dim: int, size: int, step: int) -> Any:
    """All windows by NumPy, then every ``step``-th."""
    view = np.lib.stride_tricks.sliding_window_view(x, size, axis=dim)
    return view[(slice(None),) * (dim % x.ndim) + (slice(None, None, step),)]


@settings(max_examples=80, deadline=None)
@given(tensors(), st.data())
def test_one_dim(case: Any, data: st.DataObject) -> None:
    tensor, x = case
    dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
    shift = data.draw(st.integers(-9, 9))
    assert_same(tensor.roll(shift, dim), np.roll(x, shift, dim), tensor)
    assert_same(tensor.flip(dim), np.flip(x, dim), tensor)
    left, right = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    assert_same(tensor.pad_with_zeros(dim, left, right), np.pad(x, pads(x, dim, left, right)), tensor)
    if x.size:
        assert_same(tensor.pad_with_same(dim, left, right), np.pad(x, pads(x, dim, left, right), mode="edge"), tensor)
    start = data.draw(st.integers(0, x.shape[dim]))
    length = data.draw(st.integers(0, x.shape[dim] - start))
    assert_same(tensor.narrow(dim, start, length), np.take(x, range(start, start + length), dim), tensor)
    chunks = data.draw(st.integers(1, 5))
    parts = [part for part in np.array_split(x, chunks, dim) if part.shape[dim]]
    found = tensor.chunk(chunks, dim)
    assert len(found) == len(parts)
    for got, want in zip(found, parts):
        assert_same(got, want, tensor)
    squeezed = np.squeeze(x, dim) if x.shape[dim] == 1 else x
    assert_same(tensor.squeeze(dim), squeezed, tensor)
    if x.shape[dim]:
        size = data.draw(st.integers(1, x.shape[dim]))
        step = data.draw(st.integers(1, 5))
        assert_same(tensor.unfold(dim, size, step), windows(x, dim, size, step), tensor)
        at = data.draw(st.integers(0, x.shape[dim] - 1))
        assert_same(tensor.get_on_dim(dim, at), np.take(x, at, dim), tensor)


@settings(max_examples=80, deadline=None)
@given(tensors(least_rank=0), st.data())
def test_whole_shapes(case: Any, data: st.DataObject) -> None:
    tensor, x = case
    order = data.draw(st.permutations(range(x.ndim)))
    assert_same(tensor.permute(order), np.transpose(x, order), tensor)
    some = data.draw(st.lists(st.sampled_from(order), unique=True)) if order else []
    assert_same(tensor.flip(some), np.flip(x, tuple(some)), tensor)
    place = data.draw(st.integers(-x.ndim - 1, x.ndim))
    assert_same(tensor.unsqueeze(place), np.expand_dims(x, place), tensor)
    if x.ndim:
        first, last = sorted(data.draw(st.tuples(st.sampled_from(order), st.sampled_from(order))))
        assert_same(tensor.transpose(first, last), np.swapaxes(x, first, last), tensor)
        merged = (*x.shape[:first], int(np.prod(x.shape[first : last + 1])), *x.shape[last + 1 :])
        assert_same(tensor.flatten(first, last), x.reshape(merged), tensor)
    if x.ndim >= 2:
        assert_same(tensor.t(), np.swapaxes(x, -1, -2), tensor)
    left = data.draw(st.lists(st.integers(0, 3), max_size=2).map(tuple))
    assert_same(tensor.broadcast_left(left), np.broadcast_to(x, (*left, *x.shape)), tensor)
    wide = tuple(data.draw(st.integers(0, 3)) if size == 1 else size for size in x.shape)
    assert_same(tensor.broadcast_as((2, *wide)), np.broadcast_to(x, (2, *wide)), tensor)
    assert_same(tensor.expand(wide), np.broadcast_to(x, wide), tensor)
    if x.size:
        assert_same(tensor.reshape((-1, *x.shape[1:])), x.reshape((-1, *x.shape[1:])), tensor)
    for same in (tensor.copy(), tensor.contiguous(), tensor.force_contiguous(), tensor.reshape(x.shape)):
        assert_same(same, x, tensor)


@settings(max_examples=60, deadline=None)
@given(tensors(least_rank=0), st.lists(st.integers(0, 3), max_size=5))
def test_repeat_is_aligned_at_the_first_dim(case: Any, repeats: list[int]) -> None:
    tensor, x = case
    assert_same(tensor.repeat(repeats), np.tile(x, (*repeats, *[1] * (x.ndim - len(repeats)))), tensor)


@settings(max_examples=60, deadline=None)
@given(tensors(), st.data())
def test_cat_and_stack(case: Any, data: st.DataObject) -> None:
    tensor, x = case
    dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
    length = data.draw(st.integers(0, x.shape[dim]))
    parts = [tensor, tensor.narrow(dim, 0, length), tensor]
    arrays = [x, np.take(x, range(length), dim), x]
    assert_same(type(tensor).cat(parts, dim), np.concatenate(arrays, dim), tensor)
    place = data.draw(st.integers(-x.ndim - 1, x.ndim))
    assert_same(type(tensor).stack([tensor, tensor], place), np.stack([x, x], place), tensor)


VIEWS: dict[str, Callable[[Any], Any]] = {
    "reshape": lambda x: x.reshape((4, -1)),
    "permute": lambda x: x.permute((2, 0, 1)),
    "transpose": lambda x: x.transpose(0, -1),
    "broadcast_as": lambda x: x.narrow(1, 2, 1).broadcast_as((2, 3, 7, 5)),
    "narrow": lambda x: x.narrow(2, 1, 3),
    "squeeze": lambda x: x.narrow(1, 2, 1).squeeze(1),
    "squeeze of more": lambda x: x.t().squeeze(1),
    "unsqueeze": lambda x: x.t().unsqueeze(1).unsqueeze(-1),
    "an int": lambda x: x[2],
    "ints, None and steps": lambda x: x[-1, None, ::-2, 1::2, None],
    "several": lambda x: x.t()[:, 1:].narrow(0, 1, 2)[..., -1],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VIEWS)
def test_views_know_where_their_elements_lie(name: str, kind: Any) -> None:
    x = kind.new(np.arange(60).reshape(3, 4, 5))
    view = VIEWS[name](x)
    layout = layout_of(view._node)
    assert layout.shape == view.shape
    # The elements are their own places.
    np.testing.assert_array_equal(layout.places(), view.numpy())


def test_empty_shapes_and_holes() -> None:
    for kind in KINDS:
        empty = kind.zeros((0, 3))
        assert empty.reshape((-1, 3)).dims() == [0, 3]
        assert empty.reshape((3, ())).dims() == [3, 0]
        assert kind.new(1.0).reshape(-1).dims() == [1]
        assert kind.new([1.0]).reshape(()).dims() == []
        assert empty.roll(5, 0).dims() == [0, 3]
        assert empty.unfold(0, 0, 2).dims() == [1, 3, 0]
        assert kind.new([1.0, 2.0]).unfold(0, 0, 1).dims() == [3, 0]
        assert kind.new(1.0).pad_with_zeros(5, 0, 0).dims() == []
        assert empty.pad_with_same(7, 0, 0).dims() == [0, 3]
        assert empty.squeeze(D.Minus1).dims() == [0, 3]
        assert kind.new([1, 2]).roll(10**30, 0).tolist() == [1, 2]


def test_a_copy_has_storage_of_its_own_and_a_gradient() -> None:
    def address(tensor: Tensor) -> int:
        place: int = np.array(tensor.mlx(), copy=False).__array_interface__["data"][0]
        return place

    w = Var([[1.0, 2.0], [3.0, 4.0]])
    for copied in (w.copy(), w.force_contiguous(), w.t().copy()):
        assert address(copied) != address(w)
        assert copied.track_op()
        assert copied.backward()[w].to_vec2() == [[1.0, 1.0], [1.0, 1.0]]
    view = w.t().copy().mlx()
    assert memoryview(view).c_contiguous


X = np.random.default_rng(0).normal(size=(3, 4, 5))
SLOPES: dict[str, Callable[[Any], Any]] = {
    "unfold that overlaps": lambda x: x.unfold(2, 3, 1),
    "unfold that overlaps by half": lambda x: x.unfold(1, 4, 2),
    "unfold whose windows leave a rest": lambda x: x.unfold(2, 2, 2),
    "unfold with gaps": lambda x: x.unfold(2, 1, 3),
    "unfold twice": lambda x: x.unfold(1, 2, 1).unfold(2, 3, 2),
    "unfold to nothing": lambda x: x.unfold(1, 0, 1),
    "pad_with_same": lambda x: x.pad_with_same(1, 2, 3),
    "pad_with_same of one": lambda x: x.narrow(0, 1, 1).pad_with_same(0, 1, 2),
    "pad_with_zeros": lambda x: x.pad_with_zeros(-1, 2, 0),
    "repeat": lambda x: x.repeat((2, 3)),
    "repeat to more dims": lambda x: x.repeat((2, 1, 1, 2)),
    "roll": lambda x: x.roll(-2, 1),
    "flip": lambda x: x.flip((0, 2)),
    "get_on_dim": lambda x: x.get_on_dim(1, 3),
    "chunks": lambda x: type(x).cat(x.chunk(3, 2)[::2], 2),
    "broadcast_left": lambda x: x.broadcast_left((2, 1)),
    "stacked with itself": lambda x: type(x).stack([x, x * x], 1),
    "copied": lambda x: x.t().copy() * x.transpose(1, 2).force_contiguous(),
    "squeezed": lambda x: x.narrow(1, 0, 1).squeeze(1).unsqueeze(-1).squeeze(0),
}


@pytest.mark.parametrize("name", SLOPES)
def test_gradients_are_slopes(name: str) -> None:
    def function(x: Any) -> Any:
        # A Var's class makes no other tensors.
        return SLOPES[name](x * 1.0)

    assert_slopes(function, X)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16], ids=str)
def test_overlapping_windows_add_up_in_float32(dtype: DType) -> None:
    w = Var.zeros((2048,), dtype)
    assert w.unfold(0, 1024, 1).backward()[w].to_dtype("f32").numpy().max() == 1024


ERRORS: list[tuple[type[mc.Error], str, Callable[[Any], Any]]] = [
    (
        mc.error.ShapeMismatchError,
        "unfold: got windows of 4 in dim 1 of shape (2, 3); takes at most 3",
        lambda x: x.unfold(-1, 4, 1),
    ),
    (mc.error.ShapeMismatchError, "unfold: got step 0; takes 1 or more", lambda x: x.unfold(0, 1, 0)),
    (mc.error.ShapeMismatchError, "unfold: got size -1; takes 0 or more", lambda x: x.unfold(0, -1, 1)),
    (mc.error.DimOutOfRangeError, "unfold: dim 2 is out of range", lambda x: x.unfold(2, 1, 1)),
    (mc.error.DimOutOfRangeError, "roll: dim 2 is out of range", lambda x: x.roll(1, 2)),
    (mc.error.ArgumentTypeError, "roll: got shift 0.5; takes an integer", lambda x: x.roll(0.5, 0)),
    (mc.error.DimOutOfRangeError, "flip: dim -3 is out of range", lambda x: x.flip((0, -3))),
    (mc.error.DuplicateDimIndexError, "flip: dims (1, 1)", lambda x: x.flip((1, -1))),
    (mc.error.DimOutOfRangeError, "pad_with_zeros: dim 2", lambda x: x.pad_with_zeros(2, 1, 0)),
    (mc.error.ShapeMismatchError, "pad_with_zeros: got left -1; takes 0 or more", lambda x: x.pad_with_zeros(0, -1, 0)),
    (mc.error.DimOutOfRangeError, "pad_with_same: dim 2", lambda x: x.pad_with_same(2, 1, 0)),
    (
        mc.error.EmptyTensorError,
        "pad_with_same: got shape (0, 3), whose dim 0 is empty",
        lambda x: x.narrow(0, 0, 0).pad_with_same(0, 1, 0),
    ),
    (mc.error.ShapeMismatchError, "repeat: got (-1,); takes integers that are not negative", lambda x: x.repeat((-1,))),
    (mc.error.DimOutOfRangeError, "squeeze: dim 2", lambda x: x.squeeze(2)),
    (mc.error.DimOutOfRangeError, "unsqueeze: dim -4", lambda x: x.unsqueeze(-4)),
    (mc.error.DimOutOfRangeError, "transpose: dim 2", lambda x: x.transpose(0, 2)),
    (mc.error.DimOutOfRangeError, "flatten: dim 2", lambda x: x.flatten_to(2)),
    (mc.error.DuplicateDimIndexError, "permute: dims (0, 0)", lambda x: x.permute((0, 0))),
    (mc.error.ShapeMismatchError, "permute: got dims (1,)", lambda x: x.permute(1)),
    (mc.error.UnexpectedNumberOfDimsError, "t: got rank 1", lambda x: x[0].t()),
    (mc.error.BroadcastIncompatibleShapesError, "cannot broadcast shape (2, 3) to (3,)", lambda x: x.broadcast_as(3)),
    (mc.error.ShapeMismatchError, "reshape: 0 elements do not fill (0, -1)", lambda x: x[:0].reshape((0, -1))),
    (mc.error.ShapeMismatchError, "reshape: 6 elements do not fit shape (5,) of 5", lambda x: x.reshape(5)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("error", "text", "call"), ERRORS, ids=[case[1] for case in ERRORS])
def test_refused_when_recorded(kind: Any, error: type[mc.Error], text: str, call: Callable[[Any], Any]) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call(kind.new(np.zeros((2, 3), np.float32)))

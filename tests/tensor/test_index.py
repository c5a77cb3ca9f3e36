"""``t[...]`` against NumPy, and the methods that name a part."""

from __future__ import annotations

from typing import Any

from metal_candle import LazyTensor, Tensor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

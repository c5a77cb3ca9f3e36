"""Shapes, dims and holes follow candle's rules and say what they take."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import D, Shape, error
from metal_candle.shape import (
    SCALAR,
    broadcast_shapes,
    dims0,
    dims1,
    dims2,
    dims3,
    dims4,
    dims5,
    expect_rank,
    fill_hole,
    normalize_axis,
    resolve_dim,
    resolve_dims,
    resolve_insertion,
)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SHAPES = st.lists(st.integers(0, 4), max_size=6)


def test_what_a_shape_is_made_of() -> None:
    for shape in ((2, 3), [2, 3], range(2, 4), np.array([2, 3]), Shape((2, 3)), (np.int64(2), 3)):
        made = Shape.of(shape)  # type: ignore[arg-type]
        assert type(made) is Shape
        assert made == (2, 3)
        assert all(type(size) is int for size in made)
    assert Shape.of(5) == Shape.from_dims([5]) == Shape.of(np.int32(5)) == (5,)  # type: ignore[arg-type]
    assert Shape.of(()) == SCALAR == Shape.SCALAR == ()
    assert SCALAR.elem_count() == 1
    same = Shape((1, 2))
    assert Shape.of(same) is same


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2, -1), "got (2, -1); takes integers that are not negative"),
        (-3, "got (-3,); takes integers that are not negative"),
        ((True,), "got (True,); takes integers that are not negative"),
        (2.0, "got (2.0,); takes integers that are not negative"),
        ((2, "3"), "got (2, '3'); takes integers that are not negative"),
        (None, "got (None,); takes integers that are not negative"),
        ((2**31,), "got (2147483648,); takes sizes up to 2147483647"),
    ],
)
def test_what_no_shape_is_made_of(shape: Any, text: str) -> None:
    kind = error.ArgumentTypeError if shape in ((True,), 2.0, (2, "3"), None) else error.ShapeMismatchError
    with pytest.raises(kind, match=re.escape(f"shape: {text}")):
        Shape.of(shape)


def test_accessors() -> None:
    shape = Shape((2, 3, 4))
    assert (shape.rank(), shape.dims(), shape.into_dims(), shape.elem_count()) == (3, [2, 3, 4], [2, 3, 4], 24)
    assert (shape.dim(0), shape.dim(-1), shape.dim(D.Minus2), shape.dim(D.Minus(3))) == (2, 4, 3, 2)
    longer = shape.extend([5, 6])
    assert (type(longer), longer, shape) == (Shape, (2, 3, 4, 5, 6), (2, 3, 4))
    with pytest.raises(error.ShapeMismatchError, match="takes integers that are not negative"):
        shape.extend([-1])
    with pytest.raises(IndexError, match=re.escape("dim: dim 3 is out of range for shape (2, 3, 4); takes -3..2")):
        shape.dim(3)


@pytest.mark.parametrize("rank", range(6))
def test_dims_of_a_fixed_rank(rank: int) -> None:
    functions: list[Callable[[Any], Any]] = [dims0, dims1, dims2, dims3, dims4, dims5]
    sizes = list(range(2, 2 + rank))
    want = sizes[0] if rank == 1 else tuple(sizes)
    assert functions[rank](sizes) == want
    assert getattr(Shape(sizes), f"dims{rank}")() == want
    for other in range(6):
        if other != rank:
            text = re.escape(f"dims{other}: got rank {rank}, shape {tuple(sizes)}; takes rank {other}")
            with pytest.raises(error.UnexpectedNumberOfDimsError, match=text):
                getattr(Shape(sizes), f"dims{other}")()
            with pytest.raises(error.UnexpectedNumberOfDimsError, match=text):
                functions[other](sizes)


@settings(deadline=None, max_examples=60)
@given(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3), st.randoms())
def test_contiguity_is_numpy_s(shape: tuple[int, ...], random: Any) -> None:
    axes = list(range(len(shape)))
    random.shuffle(axes)
    array = np.zeros(shape, np.int8).transpose(axes)
    mine = Shape(array.shape)
    # NumPy lets every stride pass where there is no element; candle looks at the strides all the same.
    if array.size:
        assert mine.is_contiguous(array.strides) == array.flags.c_contiguous
        assert mine.is_fortran_contiguous(array.strides) == array.flags.f_contiguous
    assert mine.is_contiguous(mine.stride_contiguous())
    assert not mine.is_contiguous((*array.strides, 1))
    assert not mine.is_fortran_contiguous((*array.strides, 1))


def test_contiguity_with_gaps_and_of_size_1() -> None:
    assert not Shape((2, 3)).is_contiguous((4, 1))
    assert Shape((1, 3)).is_contiguous((99, 1))
    assert Shape((3, 1)).is_fortran_contiguous((1, 99))
    assert not Shape((2, 3)).is_fortran_contiguous((3, 1))
    assert SCALAR.is_contiguous(())


@settings(deadline=None, max_examples=100)
@given(SHAPES, SHAPES)
def test_broadcasting_is_numpy_s(lhs: list[int], rhs: list[int]) -> None:
    try:
        want = np.broadcast_shapes(tuple(lhs), tuple(rhs))
    except ValueError:
        text = re.escape(f"add: got shapes {tuple(lhs)} and {tuple(rhs)}; takes shapes that broadcast")
        with pytest.raises(error.ShapeMismatchBinaryOpError, match=text):
            Shape(lhs).broadcast_shape_binary_op(rhs, "add")
    else:
        got = Shape(lhs).broadcast_shape_binary_op(rhs, "add")
        assert type(got) is Shape
        assert got == want == broadcast_shapes(lhs, rhs, "add")


def test_a_size_of_0_and_a_size_of_1_give_0() -> None:
    assert broadcast_shapes((0, 1), (1, 4), "add") == (0, 4)


# --- dims -------------------------------------------------------------------------------------


def test_dims_from_the_end_are_values() -> None:
    assert D.Minus(1) == D.Minus1
    assert D.Minus(2) == D.Minus2 != D.Minus1
    assert D.Minus1 != -1
    assert {D.Minus(3), D.Minus(3), D.Minus1} == {D.Minus1, D.Minus(3)}
    assert [repr(d) for d in (D.Minus1, D.Minus2, D.Minus(3))] == ["D.Minus1", "D.Minus2", "D.Minus(3)"]
    assert pickle.loads(pickle.dumps(D.Minus(4))) == copy.deepcopy(D.Minus(4)) == D.Minus(4)
    with pytest.raises(AttributeError):
        D.Minus1.value = -5
    for n in (0, -1, 1.0, True):
        with pytest.raises(mc.Error, match=re.escape(f"D.Minus: got {n}; takes 1 or more")):
            D.Minus(n)  # type: ignore[arg-type]
    with pytest.raises(mc.Error, match="D: got 0; takes a negative integer"):
        D(0)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(-9, 9))
def test_a_dim_is_found_or_named(shape: list[int], dim: int) -> None:
    forms: list[Any] = [dim, np.int64(dim), *([D.Minus(-dim)] if dim < 0 else [])]
    for form in forms:
        if -len(shape) <= dim < len(shape):
            assert resolve_dim(form, shape, "sum") == range(len(shape))[dim]
            assert normalize_axis(form, shape) == range(len(shape))[dim]
        else:
            with pytest.raises(error.DimOutOfRangeError, match=f"sum: dim {dim} is out of range") as caught:
                resolve_dim(form, shape, "sum")
            assert (caught.value.op, caught.value.shape, caught.value.dim) == ("sum", tuple(shape), dim)
            with pytest.raises(error.DimOutOfRangeError, match="normalize_axis: dim"):
                normalize_axis(form, shape)
        if -len(shape) - 1 <= dim <= len(shape):
            assert resolve_insertion(form, shape, "unsqueeze") == range(len(shape) + 1)[dim]
        else:
            with pytest.raises(error.DimOutOfRangeError, match=f"unsqueeze: dim {dim} is out of range"):
                resolve_insertion(form, shape, "unsqueeze")


@pytest.mark.parametrize("dim", [1.0, "0", True, None])
def test_what_is_no_dim(dim: Any) -> None:
    text = re.escape(f"sum: got {dim!r} for a dim; takes an integer or D.Minus1, D.Minus2, D.Minus(n)")
    for call in (
        lambda: resolve_dim(dim, (2, 3), "sum"),
        lambda: resolve_dims((dim,), (2, 3), "sum"),
        lambda: resolve_dims(dim, (2, 3), "sum"),
        lambda: resolve_insertion(dim, (2, 3), "sum"),
    ):
        with pytest.raises(mc.Error, match=text):
            call()


def test_several_dims() -> None:
    assert resolve_dims((0, D.Minus1), (2, 3, 4), "sum") == (0, 2)
    assert resolve_dims([1], (2, 3), "sum") == resolve_dims(1, (2, 3), "sum") == (1,)
    assert resolve_dims(D.Minus(2), (2, 3), "sum") == (0,)
    assert resolve_dims((), (2, 3), "sum") == ()
    with pytest.raises(error.DuplicateDimIndexError, match=re.escape("sum: dims (1, 1) name a dimension")):
        resolve_dims((1, -1), (2, 3), "sum")
    with pytest.raises(error.DimOutOfRangeError, match="sum: dim 2"):
        resolve_dims((0, 2), (2, 3), "sum")


def test_rank() -> None:
    expect_rank((1, 2), 2, "f")
    with pytest.raises(error.UnexpectedNumberOfDimsError, match=re.escape("f: got rank 1, shape (1,); takes rank 2")):
        expect_rank((1,), 2, "f")


# --- holes ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 4), max_size=4), st.integers(0, 24), st.data())
def test_a_hole_is_filled_as_numpy_does(sizes: list[int], elements: int, data: Any) -> None:
    place = data.draw(st.integers(0, len(sizes)))
    for hole in (-1, ()):
        shape = (*sizes[:place], hole, *sizes[place:])
        known = int(np.prod(sizes))
        if known and elements % known == 0:
            got = fill_hole(shape, elements, "reshape")  # type: ignore[arg-type]
            assert got == np.zeros(elements).reshape([-1 if size == () else size for size in shape]).shape  # type: ignore[arg-type]
        else:
            with pytest.raises(error.ShapeMismatchError, match=f"reshape: {elements} elements do not fill"):
                fill_hole(shape, elements, "reshape")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((-1, -1), "reshape: got (-1, -1); takes at most one hole"),
        ((-1, ()), "reshape: got (-1, -1); takes at most one hole"),
        ((4,), "reshape: 6 elements do not fit shape (4,) of 4"),
        ((), "reshape: 6 elements do not fit shape () of 1"),
        ((-2, -3), "reshape: got (-2, -3); takes integers that are not negative"),
        ((-1, -2), "reshape: got (-2,); takes integers that are not negative"),
    ],
)
def test_shapes_that_do_not_hold_the_elements(shape: Any, text: str) -> None:
    with pytest.raises(error.ShapeMismatchError, match=re.escape(text)):
        fill_hole(shape, 6, "reshape")


def test_a_hole_and_no_hole_of_another_type() -> None:
    for shape in (6.0, (-1, 2.0)):
        with pytest.raises(error.ArgumentTypeError, match=re.escape("reshape: got (")):
            fill_hole(shape, 6, "reshape")  # type: ignore[arg-type]


def test_no_hole() -> None:
    assert fill_hole((2, 3), 6, "reshape") == (2, 3)
    assert fill_hole(6, 6, "reshape") == (6,)
    assert fill_hole(-1, 6, "reshape") == (6,)
    assert fill_hole((), 1, "reshape") == ()
    assert fill_hole((np.int64(2), 3), 6, "reshape") == (2, 3)  # type: ignore[arg-type]

"""``Layout`` against NumPy's strides."""

from __future__ import annotations

import metal_candle as mc
from metal_candle.layout import Layout
from metal_candle.shape import Shape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st


def of(view: np.ndarray, storage: np.ndarray) -> Layout:
    """NumPy's strides of a view, in elements."""
    offset = (view.__array_interface__["data"][0] - storage.__array_interface__["data"][0]) // view.itemsize
    return Layout(Shape(view.shape), tuple(stride // view.itemsize for stride in view.strides), offset)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_views_of_views_lie_where_numpy_has_them(shape: list[int], data: st.DataObject) -> None:
    storage = np.arange(np.prod(shape)).reshape(shape)
    view, layout = storage, Layout.contiguous(tuple(shape))
    for _ in range(data.draw(st.integers(0, 4))):
        kind = data.draw(st.sampled_from(["permute", "slice", "broadcast", "reshape"]))
        if kind == "permute":
            order = data.draw(st.permutations(range(view.ndim)))
            view, layout = view.transpose(order), layout.permute(order)
        elif kind == "slice":
            size = view.shape[0]
            start, step = data.draw(st.integers(0, size - 1)), data.draw(st.sampled_from([1, 2, -1]))
            kept = range(start, size, step) if step > 0 else range(start, -1, step)
            view = view[kept.start : None if kept.stop < 0 else kept.stop : step]
            layout = layout.sliced([(kept.start, kept.stop, kept.step)])
        elif kind == "broadcast":
            shape_ = (2, *(3 if size == 1 else size for size in view.shape))
            view, layout = np.broadcast_to(view, shape_), layout.broadcast_as(shape_)
        else:
            flat = layout.reshaped(Shape((layout.shape.elem_count(),)))
            assert (flat is not None) == layout.is_contiguous()
            if flat is not None:
                view, layout = view.reshape(-1), flat
    np.testing.assert_array_equal(layout.places(), view)
    assert layout.is_contiguous() == view.flags.c_contiguous
    assert layout.is_fortran_contiguous() == view.flags.f_contiguous
    repeated = len(np.unique(view)) < view.size
    assert layout.overlaps() or not repeated


def test_accessors() -> None:
    layout = Layout.contiguous((2, 3)).narrow(1, 1, 2)
    assert (layout.dims(), layout.stride, layout.start_offset) == ([2, 2], (3, 1), 1)
    assert layout.dim(-1) == 2
    assert layout.contiguous_offsets() is None
    assert Layout.contiguous((2, 3)).narrow(0, 1, 1).contiguous_offsets() == (3, 6)
    assert layout.transpose(0, 1).stride == (1, 3)
    assert Layout.contiguous((0, 3)).is_contiguous()
    with pytest.raises(mc.error.NarrowInvalidArgsError):
        layout.narrow(0, 1, 2)
    with pytest.raises(mc.error.BroadcastIncompatibleShapesError):
        layout.broadcast_as((2, 3))

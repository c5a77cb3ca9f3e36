"""Records of what views share: reading a part of a storage by strides, and writing one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import DTypeMismatchError, ShapeMismatchBinaryOpError
from ...layout import Layout
from ...shape import Shape
from ..operation import Gradients, Meta, Operation, Sample

_VIEW = Layout(Shape((2, 3)), (6, 1), 1)
_TURNED = Layout(Shape((3, 4)), (1, 3), 0)


def _written(storage: mx.array, values: mx.array, layout: Layout) -> mx.array:
    """``storage`` with ``values`` at the layout's places."""
    if layout.covers(storage.size):
        return values.reshape(storage.shape)
    block = layout.block_of(Shape(storage.shape)) if values.size else None
    if block is not None:
        # MLX writes a block in place where nobody else holds the storage.
        slices, order = block
        sizes = [len(range(*bounds)) for bounds in slices]
        ordered = values.reshape([size for size in layout.shape if size != 1])
        ordered = mx.transpose(ordered, [order.index(dim) for dim in sorted(order)]) if len(order) > 1 else ordered
        written = storage[...]  # a handle of its own: only that one is given the changed array
        written[tuple(slice(*bounds) for bounds in slices)] = ordered.reshape(sizes)
        return written
    flat = mx.array(storage.reshape(-1))
    flat[mx.array(layout.places().reshape(-1))] = values.reshape(-1)
    return flat.reshape(storage.shape)


class AsStrided(Operation):
    """A view of a storage: the elements that a layout names."""

    samples = (Sample(((2, 6),), (_VIEW,)), Sample(((12,),), (_TURNED,)))
    is_view = True
    layout: Layout

    def infer(self, storage: Meta) -> Meta:
        return Meta(self.layout.shape, storage.dtype)

    def relayout(self, layout: Layout) -> Layout:
        return self.layout

    def lower(self, storage: mx.array) -> mx.array:
        flat = mx.contiguous(storage.reshape(-1))  # as_strided takes no other
        return mx.as_strided(flat, self.layout.shape, self.layout.stride, self.layout.start_offset)

    @staticmethod
    def numpy(storage: Any, layout: Layout) -> Any:
        return np.asarray(storage).reshape(-1)[layout.places()]

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        places = mx.array(self.layout.places().reshape(-1))
        zeros = mx.zeros((inputs[0].size,), cotangent.dtype)
        return (zeros.at[places].add(cotangent.reshape(-1)).reshape(inputs[0].shape),)


class StridedUpdate(Operation):
    """A storage with the elements that a layout names replaced: what writing into a view does to its storage."""

    arity = 2
    samples = (Sample(((2, 6), (2, 3)), (_VIEW,)), Sample(((12,), (3, 4)), (_TURNED,)))
    work = "move"
    layout: Layout

    def infer(self, storage: Meta, values: Meta) -> Meta:
        if values.dtype is not storage.dtype:
            raise DTypeMismatchError("set", storage.dtype, values.dtype)
        if values.shape != self.layout.shape:
            raise ShapeMismatchBinaryOpError("set", self.layout.shape, values.shape, "equal shapes")
        return storage

    def lower(self, storage: mx.array, values: mx.array) -> mx.array:
        return _written(storage, values, self.layout)

    @staticmethod
    def numpy(storage: Any, values: Any, layout: Layout) -> Any:
        written = np.array(storage)
        written.reshape(-1)[layout.places()] = values
        return written

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        zeros = mx.zeros(self.layout.shape, cotangent.dtype)
        kept = _written(cotangent, zeros, self.layout) if needs[0] else None
        return kept, cotangent.reshape(-1)[mx.array(self.layout.places())] if needs[1] else None

"""Records of windows that move along a dim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import ShapeMismatchError
from ...shape import MAX_SIZE, DimLike, Shape, resolve_dim
from ..operation import Gradients, Meta, Operation, Sample
from .counts import integer
from .pad import pads


class Unfold(Operation):
    """Windows of ``size`` elements of a dim, one every ``step``: the dim counts them, a new last dim holds them.

    There are ``(n - size) // step + 1`` of them; elements behind the last whole one are left out. The gradient
    of an element adds up over the windows that hold it. (candle 0.11 fails there when windows overlap.) Raises
    ``ShapeMismatchError`` for a window longer than the dim, a step below 1 or beyond 2^31 - 1 and a negative size.
    """

    candle = "Tensor::unfold<D: Dim>(&self, dim: D, size: usize, step: usize) -> Result<Self>"
    methods = ("unfold",)
    samples = (
        Sample(((7,),), (0, 3, 1)),
        Sample(((11, 2),), (0, 5, 2)),
        Sample(((2, 9, 3),), (1, 2, 3)),
        Sample(((2, 6),), (1, 6, 4)),
        Sample(((0, 4),), (1, 2, 2)),
        Sample(((4,),), (0, 0, 2)),
    )
    work = "view"
    dim: int
    size: int
    step: int

    @classmethod
    def bind(cls, x: Meta, dim: DimLike, size: int, step: int) -> Operation:
        axis = resolve_dim(dim, x.shape, "unfold")
        length, stride = integer("unfold", "size", size, 0), integer("unfold", "step", step, 1)
        if length > x.shape[axis]:
            what = f"windows of {length} in dim {axis} of shape {tuple(x.shape)}"
            raise ShapeMismatchError(f"unfold: got {what}; takes at most {x.shape[axis]}")
        if stride > MAX_SIZE:
            raise ShapeMismatchError(f"unfold: got a step above {MAX_SIZE}; takes at most that")
        return cls(axis, length, stride)

    def _shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        count = (shape[self.dim] - self.size) // self.step + 1
        return (*shape[: self.dim], count, *shape[self.dim + 1 :], self.size)

    def infer(self, x: Meta) -> Meta:
        return Meta(Shape(self._shape(x.shape)), x.dtype)

    def lower(self, x: mx.array) -> mx.array:
        strides = list(Shape(x.shape).stride_contiguous())
        inner = strides[self.dim]
        strides[self.dim] *= self.step
        return mx.as_strided(x, self._shape(x.shape), (*strides, inner))

    @staticmethod
    def numpy(x: Any, dim: int, size: int, step: int) -> Any:
        starts = range(0, x.shape[dim] - size + 1, step)
        windows = [np.moveaxis(np.take(x, range(start, start + size), dim), dim, -1) for start in starts]
        return np.stack(windows, dim)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        """Windows cut into blocks of ``step``: a block meets only the blocks of its neighbours at the same place."""
        x, dim, step = inputs[0], self.dim, self.step
        if not cotangent.size:
            return (mx.zeros_like(x),)
        count = cotangent.shape[dim]
        kept, behind = x.shape[:dim], x.shape[dim + 1 :]
        per_window = -(-self.size // step)
        windows = mx.moveaxis(cotangent, -1, dim + 1)
        blocks = mx.pad(windows, pads(windows.ndim, dim + 1, 0, per_window * step - self.size))
        blocks = blocks.reshape((*kept, count, per_window, step, *behind))
        if x.dtype in (mx.float16, mx.bfloat16):
            blocks = blocks.astype(mx.float32)
        total: mx.array | None = None
        for place in range(per_window):
            own = blocks[(slice(None),) * (dim + 1) + (place,)]
            moved = mx.pad(own, pads(own.ndim, dim, place, per_window - 1 - place))
            total = moved if total is None else total + moved
        assert total is not None, "a window that is not empty has a block"
        whole = total.reshape((*kept, -1, *behind))
        missing = x.shape[dim] - whole.shape[dim]
        if missing > 0:
            whole = mx.pad(whole, pads(x.ndim, dim, 0, missing))
        return (whole[(slice(None),) * dim + (slice(0, x.shape[dim]),)].astype(x.dtype),)

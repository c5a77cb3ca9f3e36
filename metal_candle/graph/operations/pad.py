"""Records that lengthen a dim at its ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import EmptyTensorError
from ...shape import DimLike, Shape, resolve_dim
from ..operation import Gradients, Meta, Operation, Sample
from .counts import integer


def pads(rank: int, dim: int, left: int, right: int) -> list[tuple[int, int]]:
    """What ``mx.pad`` and ``numpy.pad`` take for one dim."""
    return [(left, right) if i == dim else (0, 0) for i in range(rank)]


class _Pad(Operation, abstract=True):
    """Family: ``left`` elements before a dim's first, ``right`` behind its last. Two times 0 looks at no dim."""

    samples = (
        Sample(((5, 7),), (1, 2, 3)),
        Sample(((2, 3, 4),), (0, 1, 0)),
        Sample(((4, 1),), (1, 0, 6)),
        Sample(((),), (0, 0, 0)),
    )
    work = "move"
    dim: int
    left: int
    right: int

    @classmethod
    def bind(cls, x: Meta, dim: DimLike, left: int, right: int) -> Operation:
        before, after = integer(cls.key, "left", left, 0), integer(cls.key, "right", right, 0)
        if before == after == 0:
            return cls(0, 0, 0)
        return cls(resolve_dim(dim, x.shape, cls.key), before, after)

    def changes_nothing(self, x: Meta) -> bool:
        return self.left == self.right == 0

    def infer(self, x: Meta) -> Meta:
        if self.left == self.right == 0:
            return x
        sizes = list(x.shape)
        sizes[self.dim] += self.left + self.right
        return Meta(Shape.of(sizes, self.key), x.dtype)

    def _cut(self, cotangent: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """The parts that belong to the left, to the tensor, and to the right."""
        end = cotangent.shape[self.dim] - self.right
        left, middle, right = mx.split(cotangent, [self.left, end], axis=self.dim)
        return left, middle, right


class PadWithZeros(_Pad):
    """``left`` zeros before a dim's first element and ``right`` behind its last.

    Two times 0 gives the tensor itself, whatever ``dim``, as in candle. Raises ``DimOutOfRangeError``, and
    ``ShapeMismatchError`` for negative counts and a dim beyond 2^31 - 1.
    """

    candle = "Tensor::pad_with_zeros<D: Dim>(&self, dim: D, left: usize, right: usize) -> Result<Self>"
    methods = ("pad_with_zeros",)

    def lower(self, x: mx.array) -> mx.array:
        if self.left == self.right == 0:
            return x
        return mx.pad(x, pads(x.ndim, self.dim, self.left, self.right))

    @staticmethod
    def numpy(x: Any, dim: int, left: int, right: int) -> Any:
        return np.pad(x, pads(x.ndim, dim, left, right)) if x.ndim else x

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent if self.left == self.right == 0 else self._cut(cotangent)[1],)


class PadWithSame(_Pad):
    """A dim's first element ``left`` times more before it, its last ``right`` times more behind it.

    Two times 0 gives the tensor itself, whatever ``dim``, as in candle. Raises ``DimOutOfRangeError``,
    ``EmptyTensorError`` where there is nothing to repeat, ``ShapeMismatchError`` for negative counts and a dim beyond
    2^31 - 1.
    """

    candle = "Tensor::pad_with_same<D: Dim>(&self, dim: D, left: usize, right: usize) -> Result<Self>"
    methods = ("pad_with_same",)

    def infer(self, x: Meta) -> Meta:
        if (self.left or self.right) and not x.shape.elem_count():
            raise EmptyTensorError("pad_with_same", x.shape, self.dim)
        return super().infer(x)

    def lower(self, x: mx.array) -> mx.array:
        if self.left == self.right == 0:
            return x
        size = x.shape[self.dim]
        ends = [(self.left, 0), (self.right, size - 1)]
        first, last = (
            mx.repeat(mx.split(x, [at, at + 1], axis=self.dim)[1], count, axis=self.dim) for count, at in ends
        )
        return mx.concatenate([first, x, last], axis=self.dim)

    @staticmethod
    def numpy(x: Any, dim: int, left: int, right: int) -> Any:
        return np.pad(x, pads(x.ndim, dim, left, right), mode="edge") if x.ndim else x

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        if self.left == self.right == 0:
            return (cotangent,)
        left, middle, right = self._cut(cotangent)
        rest = inputs[0].shape[self.dim] - 1
        first = mx.pad(left.sum(axis=self.dim, keepdims=True), pads(left.ndim, self.dim, 0, rest))
        last = mx.pad(right.sum(axis=self.dim, keepdims=True), pads(left.ndim, self.dim, rest, 0))
        return (middle + first + last,)

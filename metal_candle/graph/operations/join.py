"""Records that join tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import DTypeMismatchError, ShapeMismatchCatError, UnexpectedNumberOfDimsError
from ...shape import Shape
from ..operation import Gradients, Meta, Operation, Sample


class Cat(Operation):
    """Tensors joined along a dim they may differ in."""

    arity = None
    candle = "Tensor::cat<A: AsRef<Tensor>, D: Dim>(args: &[A], dim: D) -> Result<Tensor>"
    samples = (Sample(((2, 3), (2, 5)), (1,)), Sample(((4,), (0,), (2,)), (0,)))
    work = "move"
    dim: int

    def infer(self, *inputs: Meta) -> Meta:
        first, total = inputs[0], 0
        for n, other in enumerate(inputs, 1):
            if other.dtype is not first.dtype:
                raise DTypeMismatchError("cat", first.dtype, other.dtype)
            if len(other.shape) != len(first.shape):
                raise UnexpectedNumberOfDimsError("cat", len(first.shape), other.shape)
            if any(a != b for i, (a, b) in enumerate(zip(first.shape, other.shape)) if i != self.dim):
                raise ShapeMismatchCatError(self.dim, first.shape, n, other.shape)
            total += other.shape[self.dim]
        sizes = (*first.shape[: self.dim], total, *first.shape[self.dim + 1 :])
        return Meta(Shape.of(sizes, "cat"), first.dtype)

    def lower(self, *inputs: mx.array) -> mx.array:
        return mx.concatenate(list(inputs), axis=self.dim)

    @staticmethod
    def numpy(*arguments: Any) -> Any:
        return np.concatenate(arguments[:-1], axis=arguments[-1])

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        ends = np.cumsum([x.shape[self.dim] for x in inputs])[:-1].tolist()
        return tuple(mx.split(cotangent, ends, axis=self.dim))

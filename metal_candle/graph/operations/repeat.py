"""Records that repeat a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...shape import Shape, ShapeLike
from ..operation import Gradients, Meta, Operation, Sample


class Repeat(Operation):
    """The tensor several times in a row along each dim.

    ``repeats`` are aligned at the first dim, as in candle: fewer of them than there are dims leave the last dims
    as they are, while more put new dims first. ``numpy.tile`` aligns at the last. 0 gives an empty dim. Raises
    ``ShapeMismatchError`` for negative counts.
    """

    candle = "Tensor::repeat<S: Into<Shape>>(&self, shape: S) -> Result<Tensor>"
    methods = ("repeat",)
    samples = (
        Sample(((2, 3),), ((3, 2),)),
        Sample(((2, 3),), ((4, 1),)),
        Sample(((2, 3),), ((2, 3, 1),)),
        Sample(((),), ((3,),)),
        Sample(((2, 3),), ((2, 0),)),
    )
    work = "move"
    repeats: tuple[int, ...]

    @classmethod
    def bind(cls, x: Meta, repeats: ShapeLike) -> Operation:
        counts = tuple(Shape.of(repeats, "repeat"))
        return cls(counts + (1,) * (len(x.shape) - len(counts)))

    def infer(self, x: Meta) -> Meta:
        sizes = [a * b for a, b in zip(self.repeats, self._sizes(x.shape))]
        return Meta(Shape.of(sizes, "repeat"), x.dtype)

    def _sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (1,) * (len(self.repeats) - len(shape)) + tuple(shape)

    def _paired(self, shape: Sequence[int]) -> list[int]:
        """Each size with its count before it: the shape of the result with a dim for the repeats."""
        return [n for pair in zip(self.repeats, self._sizes(shape)) for n in pair]

    def lower(self, x: mx.array) -> mx.array:
        paired = self._paired(x.shape)
        single = [size if i % 2 else 1 for i, size in enumerate(paired)]
        sizes = [a * b for a, b in zip(self.repeats, self._sizes(x.shape))]
        return mx.broadcast_to(x.reshape(single), paired).reshape(sizes)

    @staticmethod
    def numpy(x: Any, repeats: tuple[int, ...]) -> Any:
        return np.tile(x, repeats)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        shape = inputs[0].shape
        counts = list(range(0, 2 * len(self.repeats), 2))
        return (cotangent.reshape(self._paired(shape)).sum(axis=counts).reshape(shape),)

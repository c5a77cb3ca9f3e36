"""Records of losses, element by element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import ShapeMismatchBinaryOpError
from ...kernels import elementary
from ..operation import Gradients, Meta, Operation, Sample
from .elementwise import ANY_SHAPE, UnaryFloat
from .linalg import expect_floats


class Huber(UnaryFloat):
    """``x² / 2`` up to ``|x| = delta``, ``delta · (|x| - delta / 2)`` beyond. Huber 1964."""

    samples = tuple(Sample(sample.shapes, (delta,)) for sample in ANY_SHAPE for delta in (0.75, 1.5))
    flops_per_element = 4
    delta: float

    def lower(self, x: mx.array) -> mx.array:
        size = mx.abs(x)
        inside = mx.minimum(size, self.delta)
        return inside * (size - 0.5 * inside)

    @staticmethod
    def numpy(x: Any, delta: float) -> Any:
        return np.where(np.abs(x) <= delta, x * x / 2, delta * (np.abs(x) - delta / 2))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * mx.clip(inputs[0], -self.delta, self.delta),)


class BinaryCrossEntropyWithLogit(Operation):
    """``-(t · log(sigmoid(x)) + (1 - t) · log(1 - sigmoid(x)))`` of a logit x and a target t, of one shape.

    As ``|x| · m + log(1 + exp(-|x|))``, m the part of the target that x is on the wrong side of: nothing overflows, and
    an infinite logit on the side of a target of 0 or 1 costs nothing.
    """

    arity = 2
    samples = tuple(Sample((*sample.shapes, *sample.shapes)) for sample in ANY_SHAPE)
    work = "exponential"
    flops_per_element = 6

    def infer(self, x: Meta, target: Meta) -> Meta:
        expect_floats("binary_cross_entropy_with_logit", x, target)
        if x.shape != target.shape:
            raise ShapeMismatchBinaryOpError(
                "binary_cross_entropy_with_logit", x.shape, target.shape, "equal shapes; nothing is broadcast"
            )
        return x

    def lower(self, x: mx.array, target: mx.array) -> mx.array:
        size, missed = mx.abs(x), mx.where(x > 0, 1 - target, target)
        near = mx.log1p(elementary.exp.forward(-size)[0])
        return mx.where(missed == 0, mx.array(0, x.dtype), size * missed) + near

    @staticmethod
    def numpy(x: Any, target: Any) -> Any:
        return np.logaddexp(0, x) - x * target

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        x, target = inputs
        of_x = cotangent * (elementary.sigmoid.forward(x)[0] - target) if needs[0] else None
        return of_x, cotangent * -x if needs[1] else None

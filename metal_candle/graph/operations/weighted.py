"""Records of losses that count with a weight each, where a weight of 0 means that one does not count at all.

Not even where it is infinite or no number, which 0 times it would not hide, neither its value nor its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import ShapeMismatchBinaryOpError
from ...kernels.accurate_sum import total
from ...shape import Shape
from ..operation import Gradients, Meta, Metas, Operation, Sample
from ..work import Work, elements
from .linalg import expect_floats


def _expect_alike(op: str, x: Meta, weights: Meta) -> None:
    if x.shape != weights.shape:
        raise ShapeMismatchBinaryOpError(op, x.shape, weights.shape, "equal shapes")


def _product(values: mx.array, weights: mx.array) -> mx.array:
    return mx.where(weights != 0, values * weights.astype(values.dtype), mx.array(0, values.dtype))


_SAMPLES = (Sample(((5, 123), (5, 123))), Sample(((7,), (7,))), Sample(((), ())), Sample(((0, 3), (0, 3))))


class Kept(Operation):
    """x where the weight, of any dtype, is not 0, elsewhere 0; of integers their dtype's largest value.

    Ids of that value name nothing, see ``ids.guard``. The weights get no gradient.
    """

    arity = 2
    samples = tuple(Sample(sample.shapes, ids=((1, 2),)) for sample in _SAMPLES)
    work = "select"

    def infer(self, x: Meta, weights: Meta) -> Meta:
        _expect_alike("kept", x, weights)
        return x

    def lower(self, x: mx.array, weights: mx.array) -> mx.array:
        rest = 0 if mx.issubdtype(x.dtype, mx.floating) else mx.iinfo(x.dtype).max
        return mx.where(weights != 0, x, mx.array(rest, x.dtype))

    @staticmethod
    def numpy(x: Any, weights: Any) -> Any:
        return np.where(weights != 0, x, 0 if x.dtype.kind == "f" else np.iinfo(x.dtype).max)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return mx.where(inputs[1] != 0, cotangent, mx.array(0, cotangent.dtype)), None


class Weighted(Operation):
    """Values times their weights, of any dtype; 0 where the weight is 0, whatever the value."""

    arity = 2
    samples = _SAMPLES

    def infer(self, values: Meta, weights: Meta) -> Meta:
        expect_floats("weighted", values)
        _expect_alike("weighted", values, weights)
        return values

    def lower(self, values: mx.array, weights: mx.array) -> mx.array:
        return _product(values, weights)

    @staticmethod
    def numpy(values: Any, weights: Any) -> Any:
        return values * weights

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        values, weights = inputs
        of_weights = _product(cotangent * values, weights != 0).astype(weights.dtype) if needs[1] else None
        return cotangent * weights.astype(cotangent.dtype), of_weights


class WeightedMean(Operation):
    """``sum(values · weights) / sum(weights)``, rank 0; 0, and no gradient, where the weights sum to 0."""

    arity = 2
    samples = tuple(Sample(sample.shapes, low=0.5, high=2.0) for sample in _SAMPLES if 0 not in sample.shapes[0])
    work = "reduction"
    flops_per_element = 3

    def infer(self, values: Meta, weights: Meta) -> Meta:
        expect_floats("weighted_mean", values)
        _expect_alike("weighted_mean", values, weights)
        return Meta(Shape(()), values.dtype)

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.work, elements(inputs[0])

    def lower(self, values: mx.array, weights: mx.array) -> mx.array:
        weighted = total(_wide(_product(values, weights)), range(values.ndim))
        return (weighted * _share(values, weights)).astype(values.dtype)

    @staticmethod
    def numpy(values: Any, weights: Any) -> Any:
        return (values * weights).sum() / weights.sum()

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        values, weights = inputs
        each = _wide(cotangent) * _share(values, weights)
        of_weights = None
        if needs[1]:
            of_weights = _product(each * (_wide(values) - _wide(output)), weights != 0).astype(weights.dtype)
        return (each * weights.astype(each.dtype)).astype(values.dtype), of_weights


def _wide(x: mx.array) -> mx.array:
    return x if x.dtype in (mx.float32, mx.float64) else x.astype(mx.float32)


def _share(values: mx.array, weights: mx.array) -> mx.array:
    """1 over the sum of the weights, 0 where that is 0."""
    every = total(weights.astype(mx.float64 if values.dtype == mx.float64 else mx.float32), range(weights.ndim))
    return mx.where(every != 0, 1 / every, mx.array(0, every.dtype))

"""Records of gradients made smaller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ...shape import Shape
from ..operation import Arrays, Meta, Metas, Operation
from ..work import Work, elements
from .update import flat, several, widest

LARGE = 2**17
"""Elements of a gradient from which on a product of its own costs nothing beside it, and a copy would."""


class GlobalNorm(Operation):
    """The square root of the sum of the squares of all elements of all inputs: a scalar in F32, of F64 in F64."""

    arity = None
    differentiable = False
    work = "reduction"
    flops_per_element = 2

    def infer(self, *inputs: Meta) -> Meta:
        return Meta(Shape(), widest(inputs))

    def lower(self, *inputs: mx.array) -> mx.array:
        dtype = mx.float64 if any(array.dtype == mx.float64 for array in inputs) else mx.float32
        small = [array for array in inputs if array.size < LARGE]
        parts = [flat([array], dtype) for array in inputs if array.size >= LARGE]
        if small:
            parts.append(flat(small, dtype))
        return mx.sqrt(sum((part @ part for part in parts), mx.zeros((), dtype)))


class ClipFactor(Operation):
    """What to multiply gradients of this global norm by so that it is at most ``max_norm``: min(1, max / norm)."""

    differentiable = False
    flops_per_element = 4
    max_norm: float

    def infer(self, norm: Meta) -> Meta:
        return norm

    def lower(self, norm: mx.array) -> mx.array:
        if self.max_norm == math.inf:  # no limit, of an infinite norm either
            return mx.ones_like(norm)
        return mx.minimum(mx.reciprocal(norm + 1e-6) * self.max_norm, 1.0)


class ScaleGradients(Operation):
    """Every input but the last times the last, a scalar; each keeps its dtype and is rounded once."""

    arity = None
    differentiable = False

    def infer(self, *inputs: Meta) -> Metas:
        gradients = inputs[:-1]
        return gradients if len(gradients) > 1 else gradients[0]

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.work, elements(*inputs[:-1])

    def lower(self, *inputs: Any) -> Arrays:
        *gradients, factor = inputs
        # A half times a scalar in F32 is computed in F32.
        return several([(gradient * factor).astype(gradient.dtype) for gradient in gradients])


class ClampGradients(Operation):
    """Every element of every input, at least ``-limit`` and at most ``limit``; NaN stays."""

    arity = None
    differentiable = False
    flops_per_element = 2
    limit: float

    def infer(self, *inputs: Meta) -> Metas:
        return inputs if len(inputs) > 1 else inputs[0]

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.work, elements(*inputs)

    def lower(self, *inputs: Any) -> Arrays:
        return several([mx.clip(gradient, -self.limit, self.limit) for gradient in inputs])

"""Records of an optimizer's update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ...dtype import DType
from ...error import ShapeMismatchError
from ...shape import Shape
from ..operation import Arrays, Meta, Metas, Operation
from ..work import Work, elements


def _flat(arrays: Any) -> mx.array:
    return mx.concatenate([array.reshape(-1).astype(mx.float32) for array in arrays])


class GlobalNorm(Operation):
    """The square root of the sum of the squares of all elements of all inputs: a scalar in F32."""

    arity = None
    differentiable = False
    work = "reduction"
    flops_per_element = 2

    def infer(self, *inputs: Meta) -> Meta:
        return Meta(Shape(), DType.F32)

    def lower(self, *inputs: mx.array) -> mx.array:
        flat = _flat(inputs)
        return mx.sqrt(flat @ flat)


class AdamWUpdate(Operation):
    """One step of AdamW for several parameters at once, as one flat array: a dozen calls in place of thousands.

    Inputs: the parameters; a gradient for each that ``present`` marks; the two moments of all of them, flat;
    three scalars that change at every step: the rate, the number of the step, from 1, and a factor for the
    gradients. Results: the new parameters, then the new moments; a parameter without a gradient stays as it
    is. Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, with Adam's bias correction.
    """

    arity = None
    differentiable = False
    present: tuple[bool, ...]
    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    def infer(self, *inputs: Meta) -> Metas:
        parameters, gradients, (m, v, *_) = self._parts(inputs)
        given = iter(gradients)
        for parameter, present in zip(parameters, self.present):
            if present and (gradient := next(given)).shape != parameter.shape:
                raise ShapeMismatchError(f"adamw: got a gradient {gradient.shape} for a parameter {parameter.shape}")
        return *parameters, m, v

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        # For each element of the moments: 1 for the gradient's factor, 3 and 4 for the moments, 5 for the move,
        # 2 for the decay and the difference.
        return self.work, 15 * elements(inputs[-5])

    def _parts(self, inputs: Any) -> tuple[Any, Any, Any]:
        count = len(self.present)
        return inputs[:count], inputs[count:-5], inputs[-5:]

    def lower(self, *inputs: Any) -> Arrays:
        parameters, gradients, (m, v, rate, step, factor) = self._parts(inputs)
        given = iter(gradients)
        gradient = _flat([next(given) if here else mx.zeros_like(p) for p, here in zip(parameters, self.present)])
        gradient = gradient * factor
        old = _flat(parameters), m, v
        m = self.beta1 * m + (1 - self.beta1) * gradient
        v = self.beta2 * v + ((1 - self.beta2) * gradient) * gradient
        # 1 - beta^step by expm1: in float32 the difference itself would lose four digits at the first step.
        first, second = (-mx.expm1(step * math.log(beta)) if beta else 1.0 for beta in (self.beta1, self.beta2))
        # The corrections are scalars: on the denominator's side they cost nothing per element.
        move = m * (rate / first) / (mx.sqrt(v) * second**-0.5 + self.eps)
        new = (old[0] * (1 - rate * self.weight_decay) if self.weight_decay else old[0]) - move
        if not all(self.present):
            sizes = [mx.full((p.size,), here) for p, here in zip(parameters, self.present)]
            here = mx.concatenate(sizes)
            new, m, v = (mx.where(here, a, b) for a, b in zip((new, m, v), old))
        results, start = [], 0
        for parameter in parameters:
            part = new[start : start + parameter.size]
            results.append(part.reshape(parameter.shape).astype(parameter.dtype))
            start += parameter.size
        return *results, m, v

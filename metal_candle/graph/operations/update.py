"""Records of an optimizer's update."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from ...error import ShapeMismatchBinaryOpError
from ..operation import Arrays, Meta, Metas, Operation


class AdamWUpdate(Operation):
    """One step of AdamW: parameter, gradient, first and second moment to the new parameter and moments.

    Two scalars follow, the rate and the number of this step, from 1: they change at every step, so they are
    inputs. Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, with Adam's bias correction.
    """

    arity = 6
    differentiable = False
    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    def infer(self, parameter: Meta, gradient: Meta, m: Meta, v: Meta, rate: Meta, step: Meta) -> Metas:
        for other in (gradient, m, v):
            if other.shape != parameter.shape:
                raise ShapeMismatchBinaryOpError("adamw", parameter.shape, other.shape, "equal shapes")
        return parameter, m, v

    def lower(self, *inputs: Any) -> Arrays:
        parameter, gradient, m, v, rate, step = inputs
        gradient = gradient.astype(m.dtype)
        m = self.beta1 * m + (1 - self.beta1) * gradient
        v = self.beta2 * v + (1 - self.beta2) * (gradient * gradient)
        # 1 - beta^step by expm1: in float32 the difference itself would lose four digits at the first step.
        first, second = (-mx.expm1(step * math.log(beta)) if beta else 1.0 for beta in (self.beta1, self.beta2))
        # The corrections are scalars: on the denominator's side they cost nothing per element.
        move = m / (mx.sqrt(v) * second**-0.5 + self.eps) * (rate / first)
        decayed = parameter * (1 - rate * self.weight_decay) if self.weight_decay else parameter
        return (decayed - move).astype(parameter.dtype), m, v

"""One step of Adam and of AdamW."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .update import Update


class AdamUpdate(Update):
    """One step of Adam for several parameters; with ``decoupled`` weight decay of AdamW.

    Kingma and Ba 2015, https://arxiv.org/abs/1412.6980; Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.
    Without ``decoupled`` the decay is added to the gradient, as ``torch.optim.Adam`` does.

    ``mlx.optimizers`` computes 1 - beta^step in float32, which for beta 0.999 loses four digits at the first steps
    (0.00100000005 becomes 0.00099998713), and it corrects only when told to: hence a rule of our own.
    """

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool

    def moments(self) -> int:
        return 2

    def flops_per_step(self) -> int:
        # 1 for the gradient's factor, 3 and 4 for the moments, 5 for the move, 2 for the decay and the difference.
        return 15

    def new(self, parameter: Any, gradient: Any, moments: Sequence[Any], rate: Any, step: Any) -> tuple[Any, ...]:
        m, v = moments
        if self.weight_decay and not self.decoupled:
            gradient = gradient + self.weight_decay * parameter
        m = self.beta1 * m + (1 - self.beta1) * gradient
        v = self.beta2 * v + ((1 - self.beta2) * gradient) * gradient
        # 1 - beta^step by expm1: in float32 the difference itself would lose four digits at the first step.
        first, second = (-mx.expm1(step * math.log(beta)) if beta else 1.0 for beta in (self.beta1, self.beta2))
        # The corrections are scalars: on the denominator's side they cost nothing per element.
        move = m * (rate / first) / (mx.sqrt(v) * second**-0.5 + self.eps)
        if self.weight_decay and self.decoupled:
            parameter = parameter * (1 - rate * self.weight_decay)
        return parameter - move, m, v

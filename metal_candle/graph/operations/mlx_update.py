"""Steps by ``mlx.optimizers``, whose state comes in and goes out: their objects live for one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..operation import Arrays, Meta, Metas
from ..work import Work, elements
from .update import Update, cut, flat, several, working_dtype


class SGDUpdate(Update):
    """One step of ``mlx.optimizers.SGD`` for several parameters, with one moment if there is ``momentum``.

    v = momentum · v + (1 - dampening) · g, where g has ``weight_decay`` · w added; w = w - rate · v, or with
    ``nesterov`` w - rate · (g + momentum · v).
    """

    momentum: float
    nesterov: bool
    dampening: float
    weight_decay: float

    def moments(self) -> int:
        return 1 if self.momentum else 0

    def flops_per_step(self) -> int:
        momentum = (3 if self.dampening else 2) + 2 * self.nesterov if self.momentum else 0
        return self.scaled + 2 * bool(self.weight_decay) + momentum + 2

    def lower(self, *inputs: Any) -> Arrays:
        if self.momentum:
            return super().lower(*inputs)
        # Two operations for each parameter are fewer than it takes to join them and to part them again.
        parts = self.parts(inputs)
        dtype = working_dtype(parts.parameters)
        rule, given = self._rule(self.scaled_rate(parts.rate, dtype)), iter(parts.gradients)
        new = []
        for parameter, here in zip(parts.parameters, self.present):
            if here:
                gradient = next(given).astype(dtype)
                if self.scaled:
                    gradient = gradient * parts.factor.astype(dtype)
                moved = rule.apply_single(gradient, parameter.astype(dtype), {})
                parameter = moved.astype(parameter.dtype)
            new.append(parameter)
        return several(new)

    def new(self, parameter: Any, gradient: Any, moments: Sequence[Any], rate: Any, step: Any) -> tuple[Any, ...]:
        state = {"v": moments[0]}
        parameter = self._rule(rate).apply_single(gradient, parameter, state)
        return parameter, state["v"]

    def _rule(self, rate: mx.array) -> Any:
        from mlx.optimizers import SGD  # brings mlx.nn along, which who trains otherwise does not wait for

        rule = SGD(0.0, self.momentum, self.weight_decay, self.dampening, self.nesterov)
        rule.state["learning_rate"] = rate
        return rule


class MuonUpdate(Update):
    """One step of ``mlx.optimizers.Muon`` for several matrices: momentum, made orthogonal by Newton and Schulz.

    Dims behind the second belong to a matrix's columns. https://kellerjordan.github.io/posts/muon/
    """

    work = "product"
    momentum: float
    weight_decay: float
    nesterov: bool
    ns_steps: int

    def moments(self) -> int:
        return 1

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.work, 0

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        total = 0
        for parameter, here in zip(self.parts(inputs).parameters, self.present):
            if here:
                total += _flops(parameter, self.ns_steps)
        return total

    def lower(self, *inputs: Any) -> Arrays:
        from mlx.optimizers import Muon  # as above

        parts = self.parts(inputs)
        dtype = working_dtype(parts.parameters)
        rule = Muon(0.0, self.momentum, self.weight_decay, self.nesterov, self.ns_steps)
        rule.state["learning_rate"] = self.scaled_rate(parts.rate, dtype)
        given = iter(parts.gradients)
        new, moments = [], []
        for parameter, v, here in zip(parts.parameters, cut(parts.moments[0], parts.parameters), self.present):
            gradient = next(given).astype(dtype) if here else None
            if gradient is not None and gradient.size:  # MLX's rule divides by the sizes
                if self.scaled:
                    gradient = gradient * parts.factor.astype(dtype)
                state = {"v": v}
                moved = rule.apply_single(gradient, parameter.astype(dtype), state)
                new.append(moved.astype(parameter.dtype))
                moments.append(state["v"])
            else:
                new.append(parameter)
                moments.append(v)
        return several([*new, flat(moments, dtype)])


def _flops(matrix: Meta, steps: int) -> int:
    """Three products a step with the smaller side twice, and a dozen operations for each element."""
    size = elements(matrix)
    rows = matrix.shape[0]
    small = min(rows, size // rows) if size else 0
    return steps * (4 * small * size + 2 * small**3) + 12 * size

"""Stochastic gradient descent. candle: ``candle_nn::SGD``."""

from __future__ import annotations

from typing import Any

from ...graph.operations.mlx_update import SGDUpdate
from ...tensor.var import Var
from .optimizer import Optimizer
from .params import ParamsSGD


class SGD(Optimizer[ParamsSGD]):
    """Gradient descent, with momentum if ``ParamsSGD`` asks for it: ``SGD(vars, 0.1, momentum=0.9)``.

    Computed by ``mlx.optimizers.SGD``. Its momentum starts from 0, so that ``dampening`` acts on the first gradient,
    too, where PyTorch starts from the whole of it.

    candle: ``candle_nn::SGD``, without momentum.
    """

    config_type = ParamsSGD
    record_type = SGDUpdate

    def into_inner(self) -> list[Var]:
        """The variables. candle: ``SGD::into_inner``."""
        return self.vars()

    def _moments(self, params: ParamsSGD) -> tuple[str, ...]:
        return ("v",) if params.momentum else ()

    def _numbers(self, params: ParamsSGD) -> tuple[Any, ...]:
        return params.momentum, params.nesterov, params.dampening, params.weight_decay

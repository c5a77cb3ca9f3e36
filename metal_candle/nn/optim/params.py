"""The optimizers' numbers, with their defaults and ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ...constructors import Default
from ...error import TrainingError
from ...error.text import described
from ...graph.operations.counts import number
from ...scalar import hold_python_numbers
from ...tensor.arguments import boolean

Range = tuple[str, Callable[[Any], bool]]

AT_LEAST_0: Range = ("at least 0, and finite", lambda value: 0 <= value < math.inf)
MORE_THAN_0: Range = ("more than 0, and finite", lambda value: 0 < value < math.inf)
BELOW_1: Range = ("0 <= it < 1", lambda value: 0 <= value < 1)
COUNT: Range = ("a whole number from 1", lambda value: value >= 1 and float(value).is_integer())


@dataclass(frozen=True)
class Params:
    """Base of what an optimizer is set up with: a learning rate, and each optimizer's own numbers."""

    optimizer: ClassVar[str] = ""
    ranges: ClassVar[dict[str, Range]] = {}

    lr: float

    def __post_init__(self) -> None:
        hold_python_numbers(self)

    def validate(self) -> None:
        """Raise ``TrainingError.InvalidConfig`` for numbers outside their ranges, ``ArgumentTypeError`` for others."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in self.ranges:
                boolean(self.optimizer, field.name, value)
                continue
            takes, holds = self.ranges[field.name]
            if not holds(number(self.optimizer, field.name, value)):
                raise TrainingError.InvalidConfig(
                    reason=f"{self.optimizer}: {field.name} is {described(value)}; takes {takes}"
                )


@dataclass(frozen=True)
class ParamsSGD(Params):
    """Ours: candle's ``SGD`` takes a learning rate only, and so does this one where the rest keeps its defaults.

    ``weight_decay`` times the variable is added to the gradient. ``nesterov`` takes a ``momentum``, and no
    ``dampening``.
    """

    optimizer: ClassVar[str] = "SGD"
    ranges: ClassVar[dict[str, Range]] = {
        "lr": AT_LEAST_0,
        "momentum": AT_LEAST_0,
        "dampening": AT_LEAST_0,
        "weight_decay": AT_LEAST_0,
    }

    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    weight_decay: float = 0.0

    def validate(self) -> None:
        """As ``Params.validate``; raises for ``nesterov`` without momentum or with dampening, too."""
        super().validate()
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise TrainingError.InvalidConfig(
                reason=f"SGD: nesterov with momentum {self.momentum}, dampening {self.dampening}; "
                "takes a momentum more than 0 and no dampening"
            )


@dataclass(frozen=True)
class _Moments(Params, Default):
    """What Adam and AdamW share: all but the weight decay."""

    ranges: ClassVar[dict[str, Range]] = {
        "lr": AT_LEAST_0,
        "beta1": BELOW_1,
        "beta2": BELOW_1,
        "eps": MORE_THAN_0,
        "weight_decay": AT_LEAST_0,
    }

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True)
class ParamsAdam(_Moments):
    """PyTorch's defaults. ``weight_decay`` times the variable is added to the gradient. Ours."""

    optimizer: ClassVar[str] = "Adam"

    weight_decay: float = 0.0


@dataclass(frozen=True)
class ParamsAdamW(_Moments):
    """candle's defaults. Each step takes lr · ``weight_decay`` of the variable away. candle: ``ParamsAdamW``."""

    optimizer: ClassVar[str] = "AdamW"

    weight_decay: float = 0.01


@dataclass(frozen=True)
class ParamsMuon(Params):
    """``mlx.optimizers.Muon``'s defaults. ``weight_decay`` times the variable is added to the gradient. Ours."""

    optimizer: ClassVar[str] = "Muon"
    ranges: ClassVar[dict[str, Range]] = {
        "lr": AT_LEAST_0,
        "momentum": BELOW_1,
        "weight_decay": AT_LEAST_0,
        "ns_steps": COUNT,
    }

    momentum: float = 0.95
    weight_decay: float = 0.01
    nesterov: bool = True
    ns_steps: int = 5

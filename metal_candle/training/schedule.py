"""Learning rates by step. metal-candle: ``metal_candle::training::LRScheduler``."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..error import TrainingError
from ..error.expect import COUNT, INTEGER, NUMBER, Kind, expect
from ..error.takes import takes
from ..scalar import hold_python_numbers

_KINDS: dict[Any, Kind] = {"int": INTEGER, "float": NUMBER}
"""What a schedule's field may be, by its annotation."""


def _is_rate(value: float) -> bool:
    return 0 < value < math.inf


def _require(good: bool, reason: str) -> None:
    if not good:
        raise TrainingError.InvalidConfig(reason=f"learning rate: {reason}")


@dataclass(frozen=True)
class LRScheduler:
    """Base class of learning-rate schedules. ``get_lr(step)`` counts from 0; ``validate()`` raises ``InvalidConfig``.

    Raises ``ArgumentTypeError`` for values that are not numbers, and steps that are not integers.
    """

    Constant: ClassVar[type[Constant]]
    Linear: ClassVar[type[Linear]]
    Cosine: ClassVar[type[Cosine]]
    WarmupCosine: ClassVar[type[WarmupCosine]]

    def __post_init__(self) -> None:
        hold_python_numbers(self)
        for each in fields(self):
            if each.type in _KINDS:
                expect(type(self).__name__, getattr(self, each.name), _KINDS[each.type], each.name)

    @takes(step=COUNT)
    def get_lr(self, step: int) -> float:
        """The rate of a step. Raises ``TrainingError.InvalidConfig`` for numbers that give none."""
        raise TrainingError.InvalidConfig(
            reason=f"{type(self).__name__} has no get_lr; takes LRScheduler.constant, linear, cosine, warmup_cosine, "
            "or a class of your own with get_lr"
        )

    def validate(self) -> None:
        """Raise ``TrainingError.InvalidConfig`` for numbers that make no schedule."""

    @staticmethod
    def constant(lr: float) -> LRScheduler:
        """One rate."""
        return Constant(lr)

    @staticmethod
    def linear(warmup_steps: int, max_lr: float) -> LRScheduler:
        """A linear warm-up, then one rate."""
        return Linear(warmup_steps, max_lr)

    @staticmethod
    def cosine(total_steps: int, max_lr: float, min_lr: float) -> LRScheduler:
        """Half a cosine from ``max_lr`` to ``min_lr``."""
        return Cosine(total_steps, max_lr, min_lr)

    @staticmethod
    def warmup_cosine(warmup_steps: int, total_steps: int, max_lr: float, min_lr: float) -> LRScheduler:
        """A linear warm-up, then half a cosine."""
        return WarmupCosine(warmup_steps, total_steps, max_lr, min_lr)


@dataclass(frozen=True)
class Constant(LRScheduler):
    """One rate."""

    lr: float

    @takes(step=COUNT)
    def get_lr(self, step: int) -> float:
        """``lr``."""
        return self.lr

    def validate(self) -> None:
        """The rate must be positive."""
        _require(_is_rate(self.lr), f"lr is {self.lr}; takes more than 0")


@dataclass(frozen=True)
class Linear(LRScheduler):
    """``max_lr · step / warmup_steps`` while ``step < warmup_steps``, then ``max_lr``."""

    warmup_steps: int
    max_lr: float

    @takes(step=COUNT)
    def get_lr(self, step: int) -> float:
        """The rate of a step."""
        return self.max_lr * step / self.warmup_steps if step < self.warmup_steps else self.max_lr

    def validate(self) -> None:
        """Both must be positive."""
        _require(self.warmup_steps > 0, f"warmup_steps is {self.warmup_steps}; takes more than 0")
        _require(_is_rate(self.max_lr), f"max_lr is {self.max_lr}; takes more than 0")


@dataclass(frozen=True)
class Cosine(LRScheduler):
    """``min + (max - min) / 2 · (1 + cos(pi · min(step / total, 1)))``. Loshchilov and Hutter 2017."""

    total_steps: int
    max_lr: float
    min_lr: float

    @takes(step=COUNT)
    def get_lr(self, step: int) -> float:
        """The rate of a step."""
        _require(self.total_steps > 0, f"total_steps is {self.total_steps}; takes more than 0")
        done = min(step / self.total_steps, 1.0)
        return self.min_lr + (self.max_lr - self.min_lr) / 2 * (1 + math.cos(math.pi * done))

    def validate(self) -> None:
        """``0 <= min_lr < max_lr`` and at least one step."""
        _require(self.total_steps > 0, f"total_steps is {self.total_steps}; takes more than 0")
        _require(_is_rate(self.max_lr), f"max_lr is {self.max_lr}; takes more than 0")
        _require(0 <= self.min_lr < self.max_lr, f"min_lr is {self.min_lr}; takes 0 <= min_lr < max_lr {self.max_lr}")


@dataclass(frozen=True)
class WarmupCosine(LRScheduler):
    """Linear from 0 to ``max_lr``, then a cosine over the ``total_steps - warmup_steps`` that follow."""

    warmup_steps: int
    total_steps: int
    max_lr: float
    min_lr: float

    @takes(step=COUNT)
    def get_lr(self, step: int) -> float:
        """The rate of a step."""
        if step < self.warmup_steps:
            return self.max_lr * step / self.warmup_steps
        rest = Cosine(self.total_steps - self.warmup_steps, self.max_lr, self.min_lr)
        return rest.get_lr(step - self.warmup_steps)

    def validate(self) -> None:
        """As the cosine's, with a warm-up shorter than the whole."""
        _require(self.warmup_steps > 0, f"warmup_steps is {self.warmup_steps}; takes more than 0")
        _require(
            self.total_steps > self.warmup_steps,
            f"total_steps is {self.total_steps}; takes more than warmup_steps {self.warmup_steps}",
        )
        Cosine(self.total_steps - self.warmup_steps, self.max_lr, self.min_lr).validate()


LRScheduler.Constant = Constant
LRScheduler.Linear = Linear
LRScheduler.Cosine = Cosine
LRScheduler.WarmupCosine = WarmupCosine

"""Learning rates against their formulas."""

from __future__ import annotations

import math

from metal_candle import TrainingError
from metal_candle.training import LRScheduler

import pytest


def test_the_formulas() -> None:
    assert LRScheduler.constant(0.1).get_lr(1000) == 0.1
    linear = LRScheduler.linear(10, 1.0)
    assert [linear.get_lr(step) for step in (0, 5, 10, 100)] == [0.0, 0.5, 1.0, 1.0]
    cosine = LRScheduler.cosine(100, 1.0, 0.2)
    assert cosine.get_lr(0) == 1.0
    assert cosine.get_lr(50) == pytest.approx(0.6)
    assert cosine.get_lr(25) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))
    assert cosine.get_lr(100) == cosine.get_lr(1000) == pytest.approx(0.2)
    both = LRScheduler.warmup_cosine(10, 110, 1.0, 0.0)
    assert both.get_lr(5) == 0.5
    assert both.get_lr(10) == 1.0
    assert both.get_lr(60) == pytest.approx(0.5)
    assert both.get_lr(200) == pytest.approx(0.0)
    assert LRScheduler.Constant(lr=0.5) == LRScheduler.constant(0.5)


@pytest.mark.parametrize(
    "schedule",
    [
        LRScheduler.constant(0.0),
        LRScheduler.constant(float("nan")),
        LRScheduler.linear(1, float("inf")),
        LRScheduler.linear(0, 1.0),
        LRScheduler.cosine(0, 1.0, 0.0),
        LRScheduler.cosine(10, 1.0, 1.0),
        LRScheduler.cosine(10, 1.0, -0.1),
        LRScheduler.warmup_cosine(0, 10, 1.0, 0.0),
        LRScheduler.warmup_cosine(10, 10, 1.0, 0.0),
    ],
)
def test_what_makes_no_schedule_is_refused(schedule: LRScheduler) -> None:
    with pytest.raises(TrainingError.InvalidConfig):
        schedule.validate()


def test_a_cosine_of_no_steps_has_no_rate() -> None:
    with pytest.raises(TrainingError.InvalidConfig, match="total_steps is 0; takes more than 0"):
        LRScheduler.cosine(0, 1.0, 0.0).get_lr(0)

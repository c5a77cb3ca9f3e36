"""A bounded number of shapes: a compiled step is traced once for each, however many lengths the rows have."""

from __future__ import annotations

import math

STEPS = 8
"""Lengths are multiples of a step up to so many of them, then of twice that step, and so on: 4 for each doubling."""
PARTS = 4
"""Of a batch's positions as many meet the head as are trained, rounded up to so many parts of the batch."""
MOST_LENGTH = 1 << 20


def rounded_length(longest: int, step: int, most: int) -> int:
    """The length to pad to: at most a quarter more than ``longest`` where that is above ``STEPS`` steps.

    Not beyond ``most``, but never less than ``longest``.
    """
    while longest > STEPS * step:
        step *= 2
    return max(longest, min(math.ceil(longest / step) * step, most))


def rounded_rows(trained: int, positions: int, step: int) -> int:
    """How many rows of targets a batch of ``positions`` has for so many that are trained; a multiple of ``step``."""
    part = max(step, math.ceil(positions / PARTS / step) * step)
    return math.ceil(max(trained, 1) / part) * part


def most_shapes(max_length: int, step: int = 16) -> int:
    """How many shapes the batches of one number of rows have at most."""
    lengths = {rounded_length(length, step, max_length) for length in range(1, min(max_length, MOST_LENGTH) + 1)}
    return PARTS * len(lengths)

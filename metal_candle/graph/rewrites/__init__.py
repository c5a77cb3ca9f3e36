"""What graphs are rewritten by before they are computed, in this order; a file for each subject."""

from __future__ import annotations

from ..rewrite import Pass
from . import (
    add_matmul,
    attention,
    cast,
    common_subexpression,
    cross_entropy,
    gate,
    lora,
    movement,
    norm,
    product_order,
    rotary,
    scalar,
    softmax,
)

PASSES: tuple[Pass, ...] = (
    common_subexpression.PASS,
    cast.PASS,
    movement.PASS,
    scalar.PASS,
    softmax.PASS,
    attention.PASS,
    cross_entropy.PASS,
    norm.PASS,
    rotary.PASS,
    gate.PASS,
    lora.PASS,
    product_order.PASS,
    add_matmul.PASS,
)
"""Each is a pure function of the graph. What recognises large pieces comes before what would take them apart."""


def names() -> dict[str, str]:
    """Every name that switches something off, and the pass it belongs to: passes and single rules."""
    found = {each.name: each.name for each in PASSES}
    for each in PASSES:
        found.update({rule.name: each.name for rule in each.rules})
    return found

"""What graphs are rewritten by before they are computed, in this order; a file for each subject."""

from __future__ import annotations

from ..rewrite import Pass
from . import (
    add_matmul,
    add_norm,
    attention,
    cast,
    common_subexpression,
    cross_entropy,
    gate,
    lora,
    masked_softmax,
    movement,
    norm,
    product_order,
    rotary,
    scalar,
    softmax,
    vocabulary_head,
)

PASSES: tuple[Pass, ...] = (
    common_subexpression.PASS,
    cast.PASS,
    movement.PASS,
    scalar.PASS,
    softmax.PASS,
    attention.PASS,
    vocabulary_head.PASS,
    cross_entropy.PASS,
    masked_softmax.PASS,
    norm.PASS,
    rotary.PASS,
    gate.PASS,
    lora.PASS,
    product_order.PASS,
    add_matmul.PASS,
    add_norm.PASS,
)
"""Each is a pure function of the graph. What recognises large pieces comes before what would take them apart."""


def names() -> dict[str, str]:
    """What switches something off: a pass, "lora", a rule with its pass, "lora.add_lora", or a rule alone where no pass
    has its name. With what it stands for: the pass, or the rule with its pass."""
    found = {rule.name: f"{each.name}.{rule.name}" for each in PASSES for rule in each.rules}
    found.update({full: full for full in found.values()})
    found.update({each.name: each.name for each in PASSES})
    return found

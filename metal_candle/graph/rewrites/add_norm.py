"""A sum and the norm of it as one launch, which gives both: the residual of a block and what the next one begins with.

Only where a kernel of ours is launched, so on a GPU. The sum is rounded to its dtype before it is normed, as apart.
Behind ``add_matmul``, since what a product is added to is best added by the product itself: product and norm are two
launches either way, and the product's result is neither written nor read.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ...kernels.norm_launch import why_apart
from ..operation import Operation
from ..operations.add_norm import AddLayerNorm, AddRMSNorm
from ..operations.binary import Add
from ..operations.norm import LayerNorm, RMSNorm, WeightedRMSNorm
from ..operations.structure import Pick
from ..pattern import Of, anything
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply

_x, _residual, _weight, _bias = anything("x residual weight bias")
_total = Of((Add,), (_x, _residual), {}, name="total")


def _apart(root: Term, x: Term, residual: Term, total: Term, weight: Term | None, bias: Term | None) -> str | None:
    if x.shape != residual.shape:
        return f"{list(x.shape)} and {list(residual.shape)} are broadcast to {list(total.shape)}"
    for name, row in (("weight", weight), ("bias", bias)):
        if row is not None and not _comes_before(row, total):
            return f"the {name} is recorded after the sum, and may depend on it"
    with mx.stream(root.device.mlx()):
        return why_apart(tuple(total.shape), total.dtype.mlx_)


def _comes_before(term: Term, other: Term) -> bool:
    """Whether a term was recorded before another: what uses the sum would otherwise come before what makes it."""
    if other.place is None:
        return False
    stack = [term]
    while stack:
        part = stack.pop()
        if part.place is None:
            stack += part.inputs
        elif part.place >= other.place:
            return False
    return True


def _both(operation: Operation, *inputs: Term | None) -> tuple[Term, Term]:
    """The norm, and the sum."""
    both = apply(operation, *[each for each in inputs if each is not None])
    return apply(Pick(1), both), apply(Pick(0), both)


def _add_rms_norm(root: Term, x: Term, residual: Term, weight: Term | None) -> tuple[Term, Term]:
    return _both(AddRMSNorm(root.operation.eps), x, residual, weight)  # type: ignore[union-attr]


def _add_layer_norm(root: Term, x: Term, residual: Term, weight: Term | None, bias: Term | None) -> tuple[Term, Term]:
    return _both(AddLayerNorm(root.operation.eps), x, residual, weight, bias)  # type: ignore[union-attr]


RULES = (
    Rule(
        "add_rms_norm",
        Of((RMSNorm,), (_total,), {}) | Of((WeightedRMSNorm,), (_total, _weight), {}),
        _add_rms_norm,
        when=_apart,
        beside="total",
    ),
    Rule(
        "add_layer_norm",
        Of((LayerNorm,), (_total,), {})
        | Of((LayerNorm,), (_total, _weight), {})
        | Of((LayerNorm,), (_total, _weight, _bias), {}),
        _add_layer_norm,
        when=_apart,
        beside="total",
    ),
)

_TWO = ((5, 13), (5, 13))


def _weighted(x: Any, weight: Any) -> Any:
    return x._record(WeightedRMSNorm(1e-5), weight)


def _block(x: Any, residual: Any, weight: Any) -> Any:
    total = x + residual
    return total - _weighted(total, weight)


EXAMPLES = (
    Example(
        (*_TWO, (13,)),
        _block,
        "sub(pick(add_rms_norm(x, residual, weight; eps=1e-05); index=0), "
        "pick(add_rms_norm(x, residual, weight; eps=1e-05); index=1))",
        launched=True,
    ),
    Example(_TWO, lambda x, r: (x + r).rms_norm(1e-5), "pick(add_rms_norm(x, r; eps=1e-05); index=1)", launched=True),
    Example(
        _TWO, lambda x, r: (x + r).layer_norm(1e-5), "pick(add_layer_norm(x, r; eps=1e-05); index=1)", launched=True
    ),
    Example(
        ((2, 3, 13), (2, 3, 13), (13,), (13,)),
        lambda x, r, w, b: (x + r)._record(LayerNorm(1e-5), w, b),
        "pick(add_layer_norm(x, r, w, b; eps=1e-05); index=1)",
        launched=True,
    ),
    Example(
        _TWO,
        lambda x, r: (x + r).rms_norm(1e-5),
        "rms_norm(add(x, r); eps=1e-05)",
        because="no kernel of ours is launched here",
    ),
    Example(
        ((5, 13), (13,)),
        lambda x, r: (x + r).rms_norm(1e-5),
        "rms_norm(add(x, r); eps=1e-05)",
        because="[5, 13] and [13] are broadcast to [5, 13]",
        launched=True,
    ),
    Example(
        _TWO,
        lambda x, r: (x + r).rms_norm(1e-5),
        "rms_norm(add(x, r); eps=1e-05)",
        because="float64 is none of float32, float16 and bfloat16",
        dtypes=("f64",),
        launched=True,
    ),
    Example(
        _TWO,
        lambda x, r: _weighted(x + r, (x + r).sum(0)),
        "weighted_rms_norm(add(x, r), sum(add(x, r); dims=(0,), keepdim=False); eps=1e-05)",
        because="the weight is recorded after the sum",
        launched=True,
    ),
)
PASS = Pass("add_norm", RULES, examples=EXAMPLES)

"""A sum and its layer norm, both kept: what lies between two blocks of an encoder."""

from __future__ import annotations

from typing import Union

import mlx.core as mx

from . import norm_launch
from .kernel import Kernel
from .layer_norm import launched, layer_norm, trial
from .own import Own
from .variant import Gradients, Outputs, Variant

Row = Union[mx.array, None]


def _reference(x: mx.array, residual: mx.array, weight: Row, bias: Row, eps: float) -> Outputs:
    """``x + residual``, rounded to their dtype, and ``layer_norm`` of that; weight and bias ``(n,)`` or ``None``.

    All of one dtype, x and residual of one shape.
    """
    total = x + residual
    return total, layer_norm.reference(total, weight, bias, eps)  # type: ignore[return-value]


def _apart(x: mx.array, residual: mx.array, weight: Row, bias: Row, eps: float) -> Outputs:
    total = x + residual
    return (total, *layer_norm.forward(total, weight, bias, eps))


def _launch(x: mx.array, residual: mx.array, weight: Row, bias: Row, eps: float) -> Outputs:
    normed, total = launched(x, residual, weight, bias, eps)
    return total, normed


def _vjp(
    cotangent: tuple[Row, Row],
    inputs: tuple[mx.array, mx.array, Row, Row],
    outputs: Outputs,
    needs: tuple[bool, ...],
    eps: float,
) -> Gradients:
    of_total, of_normed = cotangent
    total, *normed = outputs
    of_weight = of_bias = None
    if of_normed is not None:
        wanted = (needs[0] or needs[1], *needs[2:], False, False)[:3]
        given = (total, inputs[2], inputs[3])
        through, of_weight, of_bias = layer_norm.vjp(of_normed, given, tuple(normed), wanted, eps)
        of_total = through if of_total is None or through is None else of_total + through
    return (of_total if needs[0] else None, of_total if needs[1] else None, of_weight, of_bias)[: len(needs)]


_APART = Variant("the sum, then its norm", _apart, _vjp)


def _select(x: mx.array, residual: mx.array, *rest: object) -> tuple[Variant | None, str]:
    # The gradients are those of equal shapes.
    return (_APART, "apart") if x.shape == residual.shape and x.ndim else (None, "the shapes are broadcast")


_OWN = Own(
    "one launch",
    _launch,
    fits=lambda x, residual, weight, bias, eps: norm_launch.unfit(x, residual, weight=weight, bias=bias),
    wins=lambda x, residual, weight, bias, eps: norm_launch.sum_wins(tuple(x.shape)),
    trial=lambda x, residual, weight, bias, eps: trial(x, True, weight, bias),
    vjp=_vjp,
)
add_layer_norm = Kernel("add_layer_norm", _reference, _select, arity=4, own=_OWN, results=2)

"""A sum and its root-mean-square norm, both kept: what lies between two blocks of a decoder."""

from __future__ import annotations

import mlx.core as mx

from . import norm_launch
from .kernel import Kernel
from .own import Own
from .rms_norm import launched, rms_norm
from .variant import Gradients, Outputs, Variant


def _reference(x: mx.array, residual: mx.array, weight: mx.array | None, eps: float) -> Outputs:
    """``x + residual``, rounded to their dtype, and ``rms_norm`` of that; weight ``(n,)`` or ``None``.

    All of one dtype, x and residual of one shape.
    """
    total = x + residual
    return total, rms_norm.reference(total, weight, eps)  # type: ignore[return-value]


def _apart(x: mx.array, residual: mx.array, weight: mx.array | None, eps: float) -> Outputs:
    total = x + residual
    return (total, *rms_norm.forward(total, weight, eps))


def _launch(x: mx.array, residual: mx.array, weight: mx.array | None, eps: float) -> Outputs:
    normed, total = launched(x, residual, weight, eps)
    return total, normed


def _vjp(
    cotangent: tuple[mx.array | None, mx.array | None],
    inputs: tuple[mx.array, mx.array, mx.array | None],
    outputs: Outputs,
    needs: tuple[bool, ...],
    eps: float,
) -> Gradients:
    of_total, of_normed = cotangent
    total, *normed = outputs
    of_weight = None
    if of_normed is not None:
        wanted = (needs[0] or needs[1], len(needs) > 2 and needs[2])
        through, of_weight = rms_norm.vjp(of_normed, (total, inputs[2]), tuple(normed), wanted, eps)
        of_total = through if of_total is None or through is None else of_total + through
    return (of_total if needs[0] else None, of_total if needs[1] else None, of_weight)[: len(needs)]


_APART = Variant("the sum, then its norm", _apart, _vjp)


def _select(x: mx.array, residual: mx.array, *rest: object) -> tuple[Variant | None, str]:
    # The gradients are those of equal shapes.
    return (_APART, "apart") if x.shape == residual.shape and x.ndim else (None, "the shapes are broadcast")


_OWN = Own(
    "one launch",
    _launch,
    fits=lambda x, residual, weight, eps: norm_launch.unfit(x, residual, weight=weight),
    wins=lambda x, residual, weight, eps: norm_launch.sum_wins(tuple(x.shape)),
    trial=lambda x, residual, weight, eps: norm_launch.trial(x, True, (weight is not None,)),
    vjp=_vjp,
)
add_rms_norm = Kernel("add_rms_norm", _reference, _select, arity=3, own=_OWN, results=2)

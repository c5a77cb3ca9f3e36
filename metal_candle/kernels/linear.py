"""Product with a layer's weight, and its gradient."""

from __future__ import annotations

import mlx.core as mx

from .add_matmul import add_matmul
from .kernel import Kernel
from .matmul import as_rows, matmul
from .variant import Gradients, Outputs, Variant


def _reference(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """``x · weightᵀ + bias``: x ``(…, in)``, weight ``(out, in)``, bias ``(out,)`` or ``None``."""
    product = x @ weight.T
    return product if bias is None else product + bias


def _forward(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> Outputs:
    # MLX itself makes one product over all rows of a matrix that several others are multiplied by.
    return (matmul(x, weight.T),) if bias is None else add_matmul.forward(x, weight.T, bias)


def _vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    *params: mx.array | None,
) -> Gradients:
    x, weight = inputs[:2]
    upstream = as_rows(cotangent)
    gradients: list[mx.array | None] = [None] * len(needs)
    if needs[0]:
        gradients[0] = matmul(upstream, weight).reshape(x.shape)
    if needs[1]:
        gradients[1] = matmul(upstream.T, as_rows(x))
    if len(needs) == 3 and needs[2]:
        gradients[2] = upstream.sum(axis=0)
    return tuple(gradients)


_VARIANT = Variant("rows", _forward, _vjp)

linear = Kernel("linear", _reference, lambda *arguments: (_VARIANT, "one product over all rows"), arity=2)

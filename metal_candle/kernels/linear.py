"""Product with a layer's weight, and its gradient."""

from __future__ import annotations

import mlx.core as mx

from .kernel import Gradients, Kernel, Outputs, Variant
from .matmul import addmm, matmul


def _reference(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """``x · weightᵀ + bias``: x ``(…, in)``, weight ``(out, in)``, bias ``(out,)`` or ``None``."""
    product = x @ weight.T
    return product if bias is None else product + bias


def as_rows(x: mx.array) -> mx.array:
    """``(…, n)`` as a matrix of rows of n, so that one product runs over all of them."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _forward(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> Outputs:
    rows = as_rows(x)
    product = matmul(rows, weight.T) if bias is None else addmm(bias, rows, weight.T)
    return (product if x.ndim == 2 else product.reshape(*x.shape[:-1], weight.shape[0]),)


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

"""Low-rank adaptation: the product through two thin matrices, added to a frozen layer's result.

Hu et al. 2021, https://arxiv.org/abs/2106.09685. The scale is applied at rank, the gradient keeps only ``x``.

Of float16, whose range is small, a scale below 1 is applied as early as any spelling of the update does it, and one
above 1 last: no product on the way leaves the range that it did not leave spelled out.
"""

from __future__ import annotations

import mlx.core as mx

from .kernel import Kernel
from .matmul import addmm, as_rows, matmul
from .variant import Gradients, Outputs, Variant


def _lora_reference(x: mx.array, a: mx.array, b: mx.array, scale: float) -> mx.array:
    """``scale · (x · a) · b``: x ``(…, in)``, a ``(in, rank)``, b ``(rank, out)`` to ``(…, out)``."""
    return scale * (x @ a) @ b


def _add_reference(base: mx.array, x: mx.array, a: mx.array, b: mx.array, scale: float) -> mx.array:
    """``base + scale · (x · a) · b``: base ``(…, out)``, the others as ``lora`` takes them."""
    return base + scale * (x @ a) @ b


def _lora_forward(x: mx.array, a: mx.array, b: mx.array, scale: float) -> Outputs:
    result = matmul(matmul(as_rows(x), a) * scale, b)
    return (result if x.ndim == 2 else result.reshape(*x.shape[:-1], b.shape[1]),)


def _lora_vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    scale: float,
) -> Gradients:
    x, a, b = inputs
    rows, upstream = as_rows(x), as_rows(cotangent)
    gradients: list[mx.array | None] = [None, None, None]
    if needs[0] or needs[1]:
        at_rank = matmul(upstream, b.T) * scale
        if needs[0]:
            gradients[0] = matmul(at_rank, a.T).reshape(x.shape)
        if needs[1]:
            gradients[1] = matmul(rows.T, at_rank)
    if needs[2]:
        gradients[2] = matmul((matmul(rows, a) * scale).T, upstream)
    return tuple(gradients)


def _early_and_late(scale: float) -> tuple[float, float]:
    return (scale, 1.0) if abs(scale) <= 1 else (1.0, scale)


def _lora_forward_f16(x: mx.array, a: mx.array, b: mx.array, scale: float) -> Outputs:
    early, late = _early_and_late(scale)
    return (_lora_forward(x, a, b, early)[0] * late,)


def _lora_vjp_f16(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    scale: float,
) -> Gradients:
    early, late = _early_and_late(scale)
    gradients = _lora_vjp(cotangent * early, inputs, outputs, needs, 1.0)
    return tuple(None if gradient is None else gradient * late for gradient in gradients)


def _add_forward(base: mx.array, x: mx.array, a: mx.array, b: mx.array, scale: float) -> Outputs:
    result = addmm(as_rows(base), matmul(as_rows(x), a), b, alpha=scale)
    return (result if base.ndim == 2 else result.reshape(base.shape),)


def _add_vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    scale: float,
) -> Gradients:
    vjp = _lora_vjp_f16 if cotangent.dtype == mx.float16 else _lora_vjp
    of_lora = vjp(cotangent, inputs[1:], outputs, needs[1:], scale)
    return (cotangent if needs[0] else None, *of_lora)


_LORA = Variant("at rank", _lora_forward, _lora_vjp)
_LORA_F16 = Variant("at rank, large scales last", _lora_forward_f16, _lora_vjp_f16)
_ADD = Variant("at rank, addmm", _add_forward, _add_vjp)


def _select(x: mx.array, a: mx.array, b: mx.array, scale: float) -> tuple[Variant, str]:
    if x.dtype == mx.float16:
        return _LORA_F16, "plain products, a scale above 1 last"
    return _LORA, "plain products, scale at rank"


lora = Kernel("lora", _lora_reference, _select, arity=3)
add_lora = Kernel("add_lora", _add_reference, lambda *arguments: (_ADD, "plain products, scale at rank"), arity=4)

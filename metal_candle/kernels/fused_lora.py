"""Low-rank adaptation: the product through two thin matrices, added to a frozen layer's result.

Hu et al. 2021, https://arxiv.org/abs/2106.09685. The scale is applied at rank, the gradient keeps only ``x``.

For few rows a launch of ours computes it at once; see ``lora_launch``. For more, MLX's products, in the order that
takes the fewest multiplications; see ``lora_order``.

Of float16, whose range is small, the products round between: there a scale below 1 is applied as early as any spelling
of the update does it, and one above 1 last, so that no product on the way leaves the range that it did not leave
spelled out. The launch keeps ``x · A`` and its sums in float32, where that makes no difference.
"""

from __future__ import annotations

import mlx.core as mx

from . import lora_launch
from .kernel import Kernel
from .lora_order import is_low, merges, order_taken
from .matmul import addmm, as_rows, matmul
from .own import Own
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


def _merged_forward(x: mx.array, a: mx.array, b: mx.array, scale: float) -> Outputs:
    result = matmul(as_rows(x), matmul(a, b) * scale)
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
    (width, rank), out = a.shape, b.shape[1]
    order = order_taken(rows.shape[0], width, rank, out, tuple(needs), x.dtype == mx.float16)
    gradients: list[mx.array | None] = [None, None, None]
    if (needs[0] and order.x) or (needs[1] and order.a):
        at_rank = matmul(upstream, b.T) * scale
    if (needs[1] and not order.a) or (needs[2] and not order.b):
        of_both = matmul(rows.T, upstream) * scale
    if needs[0]:
        of_x = matmul(at_rank, a.T) if order.x else matmul(upstream, (matmul(a, b) * scale).T)
        gradients[0] = of_x.reshape(x.shape)
    if needs[1]:
        gradients[1] = matmul(rows.T, at_rank) if order.a else matmul(of_both, b.T)
    if needs[2]:
        gradients[2] = matmul((matmul(rows, a) * scale).T, upstream) if order.b else matmul(a.T, of_both)
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


def _add_merged_forward(base: mx.array, x: mx.array, a: mx.array, b: mx.array, scale: float) -> Outputs:
    result = addmm(as_rows(base), as_rows(x), matmul(a, b), alpha=scale)
    return (result if base.ndim == 2 else result.reshape(base.shape),)


def _any_vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    scale: float,
) -> Gradients:
    vjp = _lora_vjp_f16 if cotangent.dtype == mx.float16 else _lora_vjp
    return vjp(cotangent, inputs, outputs, needs, scale)


def _add_vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    scale: float,
) -> Gradients:
    of_lora = _any_vjp(cotangent, inputs[1:], outputs, needs[1:], scale)
    return (cotangent if needs[0] else None, *of_lora)


_LORA = Variant("at rank", _lora_forward, _lora_vjp)
_LORA_F16 = Variant("at rank, large scales last", _lora_forward_f16, _lora_vjp_f16)
_LORA_MERGED = Variant("factors first", _merged_forward, _lora_vjp)
_ADD = Variant("at rank, addmm", _add_forward, _add_vjp)
_ADD_MERGED = Variant("factors first, addmm", _add_merged_forward, _add_vjp)
_FEWER = "a rank near the widths: x · (A · B) takes fewer multiplications"


def _merges(x: mx.array, a: mx.array, b: mx.array) -> bool:
    (width, rank), out = a.shape, b.shape[1]
    return bool(width) and merges(x.size // width, width, rank, out, x.dtype == mx.float16)


def _select(x: mx.array, a: mx.array, b: mx.array, scale: float) -> tuple[Variant | None, str]:
    if x.dtype == mx.float16:
        return _LORA_F16, "plain products, a scale above 1 last"
    width, rank = a.shape
    # First what is asked with the least work.
    if not is_low(width, rank, b.shape[1]) and _merges(x, a, b):
        return _LORA_MERGED, _FEWER
    return _LORA, "plain products, scale at rank"


def _select_add(base: mx.array, x: mx.array, a: mx.array, b: mx.array, scale: float) -> tuple[Variant | None, str]:
    out = b.shape[1]
    if base.shape != (*x.shape[:-1], out):
        return None, "a base that is broadcast"
    width, rank = a.shape
    if not is_low(width, rank, out) and _merges(x, a, b):
        return _ADD_MERGED, _FEWER
    return _ADD, "plain products, scale at rank"


_OWN = Own(
    "fused_lora",
    forward=lora_launch.lora_forward,
    fits=lambda x, a, b, scale: lora_launch.plan(None, x, a, b).unfit,
    wins=lambda x, a, b, scale: lora_launch.plan(None, x, a, b).wins,
    trial=lambda x, a, b, scale: lora_launch.trial(None, x, a, b),
    vjp=_any_vjp,
)
_OWN_ADD = Own(
    "fused_lora",
    forward=lora_launch.add_forward,
    fits=lambda base, x, a, b, scale: lora_launch.plan(base, x, a, b).unfit,
    wins=lambda base, x, a, b, scale: lora_launch.plan(base, x, a, b).wins,
    trial=lambda base, x, a, b, scale: lora_launch.trial(base, x, a, b),
    vjp=_add_vjp,
)

lora = Kernel("lora", _lora_reference, _select, arity=3, own=_OWN)
add_lora = Kernel("add_lora", _add_reference, _select_add, arity=4, own=_OWN_ADD)

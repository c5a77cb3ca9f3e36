"""A matrix product added to something, in one call where that is not slower than the parts.

BLAS adds to what is in the result's memory, so ``mx.addmm`` on the CPU first copies c there. That saves a pass over the
product if c has the product's shape. A c that is repeated along the rows is copied by MLX's general copy, element by
element, which takes longer than the addition it saves. ``slower`` is the measured rule.
"""

from __future__ import annotations

from math import prod

import mlx.core as mx

from .accurate_sum import total
from .kernel import Kernel, on_cpu
from .matmul import addmm, as_rows, matmul
from .variant import Gradients, Outputs, Variant, is_half, through_float32

# Elements of a product of halves from which one call is the faster.
FEW = {mx.float16: 1024, mx.bfloat16: 4096}
# Rows up to which a repeated c is copied as fast as it is added.
FEW_ROWS = 4

Sizes = tuple[int, ...]


def slower(a: Sizes, b: Sizes, c: Sizes, dtype: mx.Dtype, alpha: float = 1.0, beta: float = 1.0) -> str | None:
    """Why one call takes longer than the product, the scalings and the sum; ``None`` where it does not.

    For operands of these shapes, which fit, on the device that MLX computes on in this context; on a GPU one call is
    one kernel and never the slower. Measured on two x86-64 cores with OpenBLAS, one matrix or 4 to 16, m from 1 to 512,
    k and n from 16 to 4096: medians of alternating calls, the time of one call to that of the parts.

    - c of the product's shape: float32 0.83 to 1.04, but for single cases to 1.13; bfloat16 0.74 to 1.02 from 4096
      elements, up to 1.16 below; float16 0.54 to 1.02 from 1024 elements, up to 1.05 below.
    - c one row: float32 0.87 to 1.04 for up to 4 rows (1.09 once), 1.0 to 1.46 above, the more the smaller k; bfloat16
      0.92 to 1.16; float16 0.51 to 1.02 from 1024 elements.
    - with an alpha: c of the product's shape 0.61 to 1.0, one row of halves 0.83 to 1.05, of float32 as without one
      (0.96 to 1.23 above 4 rows). A beta does the same for c of the product's shape, and nothing for one row.
    - one matrix b for several a, which are then rows of one product: the same. MLX's own call, which repeats b: 1.6 to
      3.4 for up to 8 rows each. Hence no other factor that is repeated.
    """
    if dtype == mx.float64:
        return "float64 is computed by parts"
    if not on_cpu():
        return None
    if len(b) > 2 and a[:-2] != b[:-2]:
        return f"{a} and {b}: a factor is repeated"
    product = (*a[:-1], b[-1])
    whole = c == product
    if not whole and not _is_row(c):
        return f"c {c} is repeated along some dims of {product} only"
    elements = prod(product)
    rows = elements // product[-1] if product[-1] else 0
    if dtype == mx.float32:
        return None if whole or rows <= FEW_ROWS else f"one row added to more than {FEW_ROWS} rows of float32"
    if alpha != 1 or (whole and beta != 1):
        return None
    if elements < FEW[dtype]:
        return f"fewer than {FEW[dtype]} elements of {dtype}"
    return "one row added to bfloat16" if dtype == mx.bfloat16 and not whole else None


def _is_row(c: Sizes) -> bool:
    return prod(c[:-1]) == 1


def _reference(a: mx.array, b: mx.array, c: mx.array, alpha: float = 1.0, beta: float = 1.0) -> mx.array:
    """``alpha · (a · b) + beta · c``: a ``(…, m, k)``, b ``(…, k, n)``, c broadcast to their product ``(…, m, n)``."""
    return alpha * (a @ b) + beta * c


def _one_forward(a: mx.array, b: mx.array, c: mx.array, alpha: float = 1.0, beta: float = 1.0) -> Outputs:
    if b.ndim > 2 or a.ndim == 2:
        return (addmm(c, a, b, alpha, beta),)
    shape = (*a.shape[:-1], b.shape[-1])
    if not (c.shape == shape or _is_row(c.shape)):
        return (addmm(c, a, b, alpha, beta),)
    beside = as_rows(c) if c.shape == shape else c.reshape(-1)
    return (addmm(beside, as_rows(a), b, alpha, beta).reshape(shape),)


def _parts_forward(a: mx.array, b: mx.array, c: mx.array, alpha: float = 1.0, beta: float = 1.0) -> Outputs:
    product = matmul(a, b)
    return ((product if alpha == 1 else product * alpha) + (c if beta == 1 else c * beta),)


def _vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Gradients:
    a, b, c = inputs
    of_a = of_b = of_c = None
    if needs[2]:
        of_c = _summed(cotangent, c) if beta == 1 else _summed(cotangent, c) * beta
    if needs[0] or needs[1]:
        upstream = cotangent if alpha == 1 else cotangent * alpha
        if needs[0]:
            of_a = _summed(matmul(upstream, mx.swapaxes(b, -1, -2)), a)
        if needs[1] and b.ndim == 2:
            of_b = matmul(as_rows(a).T, as_rows(upstream))
        elif needs[1]:
            of_b = _summed(matmul(mx.swapaxes(a, -1, -2), upstream), b)
    return of_a, of_b, of_c


def _summed(gradient: mx.array, like: mx.array) -> mx.array:
    """The gradient of a broadcast: summed over the dims along which ``like`` was repeated."""
    if gradient.shape == like.shape:
        return gradient
    extra = gradient.ndim - like.ndim
    axes = [i for i in range(gradient.ndim) if i < extra or like.shape[i - extra] != gradient.shape[i]]
    return total(gradient, axes).reshape(like.shape)


_ONE = Variant("mx.addmm", _one_forward, _vjp)
_PARTS = Variant("product and sum", _parts_forward, _vjp)
_PARTS_HALF = through_float32(_PARTS)


def _select(a: mx.array, b: mx.array, c: mx.array, alpha: float = 1.0, beta: float = 1.0) -> tuple[Variant | None, str]:
    reason = slower(a.shape, b.shape, c.shape, a.dtype, alpha, beta)
    if reason is None:
        return _ONE, "not slower than the parts"
    return _PARTS_HALF if is_half(a) else _PARTS, reason


add_matmul = Kernel("add_matmul", _reference, _select, arity=3)

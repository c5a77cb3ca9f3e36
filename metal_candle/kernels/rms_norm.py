"""Root-mean-square normalisation."""

from __future__ import annotations

import mlx.core as mx

from .kernel import (
    Gradients,
    Kernel,
    Outputs,
    Variant,
    differentiated_by_mlx,
    is_half,
    on_cpu,
    through_float32,
)


def _reference(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """``x / sqrt(mean(x²) + eps) · weight`` over the last dim; weight ``(n,)`` or ``None``.

    Sums are taken in float32, eps is inside the root. Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """
    wide = x.astype(mx.float32) if is_half(x) else x
    normed = (wide * mx.rsqrt(mx.mean(mx.square(wide), axis=-1, keepdims=True) + eps)).astype(x.dtype)
    return normed if weight is None else normed * weight


def row_sum(x: mx.array) -> mx.array:
    """The sum over the last dim, kept: as a product with ones, 0.35 ns an element to 0.9 of ``mx.sum``."""
    return x @ mx.ones((x.shape[-1], 1), dtype=x.dtype)


def _forward(x: mx.array, weight: mx.array | None, eps: float) -> Outputs:
    inverse = mx.rsqrt(row_sum(mx.square(x)) * (1 / x.shape[-1]) + eps)
    normed = x * inverse
    return (normed if weight is None else normed * weight), inverse


def _vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, mx.array | None],
    outputs: Outputs,
    needs: tuple[bool, ...],
    eps: float,
) -> Gradients:
    x, weight = inputs
    inverse = outputs[1] if len(outputs) == 2 else _forward(x, None, eps)[1]
    of_x = of_weight = None
    if needs[0]:
        upstream = cotangent if weight is None else cotangent * weight
        along = row_sum(upstream * x) * (mx.square(inverse) * inverse * (-1 / x.shape[-1]))
        of_x = upstream * inverse + x * along
    if len(needs) > 1 and needs[1]:
        of_weight = (cotangent * (x * inverse)).reshape(-1, x.shape[-1]).sum(axis=0)
    return (of_x, of_weight)[: len(needs)]


def _fast(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    return mx.fast.rms_norm(x, weight, eps)


# Measured on (512, 576): 0.9 and 2.4 ns an element, forward and backward, to mx.fast.rms_norm's 1.7 and 3.5.
_CPU = Variant("sums by product", _forward, _vjp)
_HALF = through_float32(_CPU)
_GPU = differentiated_by_mlx("mx.fast.rms_norm", _fast)


def _select(x: mx.array, weight: mx.array | None, eps: float) -> tuple[Variant | None, str]:
    if x.ndim == 0 or x.size == 0:
        return None, "no rows"
    if not on_cpu():
        return _GPU, "GPU"
    return (_HALF, "half precision on the CPU") if is_half(x) else (_CPU, f"{x.dtype} on the CPU")


rms_norm = Kernel("rms_norm", _reference, _select, arity=2)

"""Softmax and log-softmax over the last dim."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import mlx.core as mx
import numpy as np

from . import double, softmax_launch
from .elementary import exp_up_to_zero
from .kernel import Kernel, on_cpu
from .own import Own
from .rms_norm import row_sum
from .slices import by_rows
from .softmax_backward import softmax_backward
from .variant import Gradients, Outputs, Variant, is_half, through_float32

# Measured in chains of ten, times that of mx.softmax and its 15 ns an element: 2.9 for 2048 elements, 1.5 for 4096,
# 0.95 for 8192, 0.65 for 16384. Below this the dozen operations cost more than they save.
SMALL = 8192
_FEW = f"fewer than {SMALL} elements"
# Elements up to which a causal mask is kept: 256 KiB.
KEPT = 2**16


def _reference(x: mx.array, scale: float = 1.0, mask: mx.array | str | None = None) -> mx.array:
    """``softmax(scale · x + mask)`` over the last dim, shifted by its maximum, sums in float32.

    ``mask`` is added, or a boolean one keeps where it is true; ``"causal"`` keeps what is not to the right of the
    diagonal that ends bottom-right. Both broadcast to x. A row without a finite maximum is NaN, as in
    ``mx.softmax(precise=True)``; so is one with NaN or inf where -inf is added to it, but our launch does not look at
    what a causal mask hides.
    """
    return double.softmax(masked(x if scale == 1 else x * scale, mask))


def masked(scores: mx.array, mask: mx.array | str | None, by_mlx: bool = True) -> mx.array:
    """``scores`` with the mask applied; see ``softmax``. ``by_mlx`` says whether MLX differentiates it."""
    if mask is None:
        return scores
    if isinstance(mask, str):
        return scores + causal_mask(scores.shape[-2], scores.shape[-1], scores.dtype)
    if mask.dtype == mx.bool_:
        return cast(mx.array, _hidden(scores, mask)) if by_mlx else _seen(scores, mask)
    return scores + mask.astype(scores.dtype)


def _seen(scores: mx.array, mask: mx.array) -> mx.array:
    return mx.where(mask, scores, mx.array(-mx.inf, scores.dtype))


# MLX multiplies the gradient by the mask: 0 times the NaN of a row that sees nothing, and in a product that of others.
@mx.custom_function
def _hidden(scores: mx.array, mask: mx.array) -> mx.array:
    return _seen(scores, mask)


@_hidden.vjp
def _(given: tuple[mx.array, ...], cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
    scores, mask = given
    return mx.where(mask, cotangent, mx.array(0, scores.dtype)), mx.zeros_like(mask)


def causal_mask(rows: int, columns: int, dtype: mx.Dtype) -> mx.array:
    """``(rows, columns)``: -inf to the right of the diagonal that ends bottom-right, else 0."""
    if dtype == mx.float32 and rows * columns <= KEPT:
        return _kept_causal_mask(rows, columns)
    return mx.triu(mx.full((rows, columns), -mx.inf, dtype), k=columns - rows + 1)


@lru_cache(maxsize=32)
def _kept_causal_mask(rows: int, columns: int) -> mx.array:
    # Each layer asks for the same ones. From NumPy, so that it is there at once: a value that MLX has yet to compute
    # belongs to a thread's stream.
    return mx.array(np.triu(np.full((rows, columns), -np.inf, np.float32), columns - rows + 1))


def row_max(x: mx.array) -> mx.array:
    """The maximum over the last dim, kept."""
    *leading, columns = x.shape
    # In two steps, the first down columns, which MLX's CPU back-end does several at a time: 0.3 to 0.9 ns an
    # element to 0.7 to 1.7.
    if columns % 32 == 0 and columns > 64:
        x = mx.max(x.reshape(*leading, columns // 32, 32), axis=-2)
    return mx.max(x, axis=-1, keepdims=True)


def exp_rows(scores: mx.array) -> tuple[mx.array, mx.array]:
    """``exp(scores - m)`` for float32 rows with maximum m, and m."""
    top = row_max(scores)
    return exp_up_to_zero(scores - top), top


def _softmax_rows(x: mx.array, scale: float) -> mx.array:
    powers, _ = exp_rows(x if scale == 1 else x * scale)
    return powers * (1 / row_sum(powers))


def _log_softmax_rows(x: mx.array) -> mx.array:
    powers, top = exp_rows(x)
    return (x - top) - mx.log(row_sum(powers))


def _forward(x: mx.array, scale: float = 1.0, mask: mx.array | str | None = None) -> Outputs:
    if mask is None:
        return (by_rows(lambda rows: _softmax_rows(rows, scale), x),)
    return (by_rows(lambda rows: _softmax_rows(rows, 1.0), masked(x if scale == 1 else x * scale, mask, False)),)


def _vjp(
    cotangent: mx.array,
    inputs: Outputs,
    outputs: Outputs,
    needs: tuple[bool, ...],
    scale: float = 1.0,
    mask: mx.array | str | None = None,
) -> Gradients:
    weighted = cotangent * outputs[0]
    of_scores = weighted - outputs[0] * row_sum(weighted)
    of_x = of_scores if scale == 1 else of_scores * scale
    return (of_x if needs[0] else None, *_of_mask(of_scores, mask, needs[1:]))


def _of_mask(of_scores: mx.array, mask: mx.array | str | None, needs: tuple[bool, ...]) -> Gradients:
    if not needs or not needs[0] or not isinstance(mask, mx.array):
        return (None,) * len(needs)
    return (summed_to(of_scores, mask.shape).astype(mask.dtype),)


def summed_to(gradient: mx.array, shape: tuple[int, ...]) -> mx.array:
    """The gradient of a broadcast: summed over the dims along which ``shape`` was repeated."""
    extra = gradient.ndim - len(shape)
    axes = [i for i in range(gradient.ndim) if i < extra or shape[i - extra] != gradient.shape[i]]
    return (gradient.sum(axis=axes, keepdims=True) if axes else gradient).reshape(shape)


_CPU = Variant("rational", _forward, _vjp)
_HALF = through_float32(_CPU)


def _log_forward(x: mx.array) -> Outputs:
    return (by_rows(_log_softmax_rows, x),)


def _log_vjp(cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...]) -> Gradients:
    total = row_sum(cotangent)
    return (cotangent - by_rows(exp_up_to_zero, outputs[0]) * total,)


_LOG_CPU = Variant("rational", _log_forward, _log_vjp)
_LOG_HALF = through_float32(_LOG_CPU)


def _log_reference(x: mx.array) -> mx.array:
    """``x - log(sum(exp(x)))`` over the last dim, summed in float32.

    A row without a finite maximum is NaN.
    """
    wide = x.astype(mx.float32) if is_half(x) else x
    # The shift has no gradient, since it cancels; the difference of its two parts would be rounding alone.
    shifted = wide - mx.stop_gradient(mx.max(wide, axis=-1, keepdims=True))
    return (shifted - mx.log(mx.sum(double.exp(shifted), axis=-1, keepdims=True))).astype(x.dtype)


def gradients(
    y: mx.array, cotangent: mx.array, needs: tuple[bool, ...], scale: float = 1.0, mask: mx.array | str | None = None
) -> Gradients:
    """The gradients of ``softmax(x, scale, mask)``, whose result is y: of x, and of a mask that is added."""
    is_added = isinstance(mask, mx.array) and mask.dtype != mx.bool_
    if not is_added or len(needs) < 2 or not needs[1]:
        of_x = softmax_backward(y, cotangent, scale, False) if needs[0] else None
        # A row that sees nothing is NaN; what it does not see is not to blame.
        if of_x is not None and isinstance(mask, mx.array) and not is_added:
            of_x = mx.where(mask, of_x, mx.array(0, of_x.dtype))
        return (of_x, *(None,) * (len(needs) - 1))
    of_scores = softmax_backward(y, cotangent, 1.0, False)
    of_x = (of_scores if scale == 1 else of_scores * scale) if needs[0] else None
    # A sum over rows, and heads: of halves in float32.
    wide = of_scores.astype(mx.float32) if is_half(of_scores) else of_scores
    return (of_x, *_of_mask(wide, mask, needs[1:]))


def _launched_vjp(
    cotangent: mx.array,
    inputs: Outputs,
    outputs: Outputs,
    needs: tuple[bool, ...],
    scale: float = 1.0,
    mask: mx.array | str | None = None,
) -> Gradients:
    return gradients(outputs[0], cotangent, needs, scale, mask)


def _launched_log_vjp(cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...]) -> Gradients:
    return (softmax_backward(outputs[0], cotangent, 1.0, True),)


def _select(x: mx.array, cpu: Variant, half: Variant) -> tuple[Variant | None, str]:
    # First what is asked with the least work.
    if x.size < SMALL:
        return None, _FEW
    if not on_cpu():
        return None, "GPU"
    if x.dtype == mx.float32:
        return cpu, "float32 on the CPU"
    return (half, "half precision on the CPU") if is_half(x) else (None, f"{x.dtype} on the CPU")


_OWN = Own(
    "one launch",
    softmax_launch.softmax,
    softmax_launch.unfit,
    softmax_launch.wins,
    softmax_launch.trial,
    _launched_vjp,
)
_LOG_OWN = Own(
    "one launch",
    softmax_launch.log_softmax,
    softmax_launch.log_unfit,
    softmax_launch.log_wins,
    softmax_launch.log_trial,
    _launched_log_vjp,
)
softmax = Kernel("softmax", _reference, lambda x, *params: _select(x, _CPU, _HALF), own=_OWN)
log_softmax = Kernel("log_softmax", _log_reference, lambda x: _select(x, _LOG_CPU, _LOG_HALF), own=_LOG_OWN)

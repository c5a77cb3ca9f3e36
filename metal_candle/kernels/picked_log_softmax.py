"""Single log-probabilities of a distribution over many classes, without the others."""

from __future__ import annotations

import mlx.core as mx

from . import double, row_loss
from .elementary import exp_up_to_zero
from .kernel import Kernel, on_cpu
from .own import Own, Trial
from .rms_norm import row_sum
from .slices import by_rows, filled_by_rows
from .softmax import SMALL, exp_rows
from .targets import or_nan, or_zero, places, surely
from .variant import Gradients, Outputs, Variant, differentiated_by_mlx, is_half


def _wide(x: mx.array) -> mx.array:
    return x.astype(mx.float32) if is_half(x) else x


def _reference(x: mx.array, ids: mx.array) -> mx.array:
    """``log_softmax(x)`` over the last dim at ``ids``: x ``(…, v)``, ids ``(…, k)`` below v, to ``(…, k)``.

    Sums are float32's, of float64 float64's, rounded once to x's dtype. A row without a finite maximum is NaN; so is
    the result of an id that is none of 0..v - 1, and its gradient 0, whatever the row is if it has no other id.
    """
    at, known = places(ids, x.shape[-1])
    wide = or_zero(_wide(x), mx.any(known, axis=-1, keepdims=True))
    shifted = wide - mx.max(wide, axis=-1, keepdims=True)
    rest = mx.log(mx.sum(double.exp(shifted), axis=-1, keepdims=True))
    return or_nan((mx.take_along_axis(shifted, at, axis=-1) - rest).astype(x.dtype), known)


def _fast(x: mx.array, ids: mx.array) -> mx.array:
    at, known = places(ids, x.shape[-1])
    return or_nan(-mx.fast.cross_entropy(or_zero(x, known), at[..., 0])[..., None].astype(x.dtype), known)


def _maximum_and_total(x: mx.array) -> tuple[mx.array, mx.array]:
    """The maximum of each row and the sum of the exponentials shifted by it, ``(…, 1)`` in float32."""

    def of_rows(rows: mx.array) -> mx.array:
        powers, top = exp_rows(_wide(rows))
        return mx.concatenate([top, row_sum(powers)], axis=-1)

    both = by_rows(of_rows, x)
    return both[..., :1], both[..., 1:]


def _forward(x: mx.array, ids: mx.array) -> Outputs:
    top, total = _maximum_and_total(x)
    # Shifted first: a logarithm of the sum added to a large maximum would lose its digits.
    at, known = places(ids, x.shape[-1])
    picked = (_wide(mx.take_along_axis(x, at, axis=-1)) - top) - mx.log(total)
    return or_nan(picked.astype(x.dtype), known), top, total


def _vjp(cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...]) -> Gradients:
    x, ids = inputs
    if not needs[0]:
        return (None,) * len(needs)
    top, total = outputs[1:] if len(outputs) == 3 else _maximum_and_total(x)
    at, known = places(ids, x.shape[-1])
    upstream = or_zero(_wide(cotangent), known)
    factor = -mx.sum(upstream, axis=-1, keepdims=True) / total
    all_known, some = surely(known), mx.any(known, axis=-1, keepdims=True)

    def of_rows(
        rows: mx.array, at: mx.array, upstream: mx.array, top: mx.array, factor: mx.array, some: mx.array
    ) -> mx.array:
        softmax = exp_up_to_zero(_wide(rows) - top) * factor
        # Added, since a row may pick a class several times.
        flat = mx.arange(rows.shape[0])[:, None] * rows.shape[1] + at
        gradient = softmax.reshape(-1).at[flat.reshape(-1)].add(upstream.reshape(-1))
        gradient = gradient.reshape(rows.shape).astype(x.dtype)
        return gradient if all_known else or_zero(gradient, some)

    return (filled_by_rows(of_rows, x, at, upstream, top, factor, some), None)[: len(needs)]


_ROWS = Variant("rational", _forward, _vjp)
# Of a row that holds +inf it gives -inf where the definition has NaN; nothing else differs but in rounding.
_FAST = differentiated_by_mlx("mx.fast.cross_entropy", _fast)


def _select(x: mx.array, ids: mx.array) -> tuple[Variant | None, str]:
    if x.size == 0 or ids.size == 0:
        return None, "no elements"
    if not on_cpu():
        return (_FAST, "GPU, one id a row") if ids.shape[-1] == 1 else (None, "GPU, several ids a row")
    if x.size < SMALL:
        return None, f"fewer than {SMALL} elements"
    if x.dtype != mx.float32 and not is_half(x):
        return None, f"{x.dtype} on the CPU"
    return _ROWS, "CPU"


def _own_forward(x: mx.array, ids: mx.array) -> Outputs:
    return row_loss.losses(x, ids, x.dtype, row_loss.LOG_PROBABILITY)


def _own_vjp(cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...]) -> Gradients:
    x, ids = inputs
    if not needs[0]:
        return (None,) * len(needs)
    seen = (outputs if len(outputs) == 2 else _own_forward(x, ids))[1]
    return (row_loss.gradient(cotangent, x, ids, seen, row_loss.LOG_PROBABILITY), None)[: len(needs)]


def _own_fits(x: mx.array, ids: mx.array) -> str | None:
    if ids.ndim == 0 or ids.shape[-1] != 1:
        return "several ids a row"
    return row_loss.unfit(x, ids, ids.shape[:-1])


def _own_trial(x: mx.array, ids: mx.array) -> Trial:
    key, sample = row_loss.trial(x, ids, x.dtype)

    def arguments() -> tuple[mx.array, mx.array]:
        logits, targets = sample()
        return logits, targets[:, None]

    return Trial(key, arguments)


_OWN = Own("one reading", _own_forward, _own_fits, lambda x, ids: row_loss.wins(x), _own_trial, _own_vjp)

picked_log_softmax = Kernel("picked_log_softmax", _reference, _select, arity=2, own=_OWN)

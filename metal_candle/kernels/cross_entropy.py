"""Cross entropy of logits with integer targets; from hidden states it is ``head_cross_entropy``."""

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

# Less than this added to any float32 does not make it infinite.
LARGE = 1e30


def of_logits(logits: mx.array, targets: mx.array, label_smoothing: float = 0.0) -> mx.array:
    """``logsumexp(logits) - logits[target]`` of each row: logits ``(…, v)``, integer targets ``(…)`` below v.

    The result is float32, of float64 float64. With label smoothing ε the target distribution is
    ``(1 - ε)·onehot + ε/v``, as in PyTorch. A target that is none of 0..v - 1 gives NaN, and its row a gradient of 0.
    """
    at, known = places(targets, logits.shape[-1])
    wide = or_zero(_wide(logits), known[..., None])
    if wide.size:
        # Differences to the largest: large logits would lose what they differ by. A row whose largest is not finite, or
        # so large that a difference might overflow, stays as it is.
        top = mx.stop_gradient(mx.max(wide, axis=-1, keepdims=True))
        wide = wide - mx.where(mx.abs(top) < LARGE, top, mx.zeros((), dtype=wide.dtype))
    picked = mx.take_along_axis(wide, at[..., None], axis=-1)[..., 0]
    if label_smoothing:
        picked = (1 - label_smoothing) * picked + label_smoothing * wide.mean(axis=-1)
    return or_nan(double.logsumexp(wide, (-1,)) - picked, known)


def _wide(x: mx.array) -> mx.array:
    return x.astype(mx.float32) if is_half(x) else x


def _forward(logits: mx.array, targets: mx.array, label_smoothing: float = 0.0) -> Outputs:
    at, known = places(targets, logits.shape[-1])
    seen = _seen(logits, label_smoothing)
    top, total = seen[..., 0], seen[..., 1]
    # Differences to the largest, as the definition has it: a logsumexp of large logits would have lost the digits.
    loss = top - _wide(mx.take_along_axis(logits, at[..., None], axis=-1))[..., 0]
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * seen[..., 2]
    return or_nan(loss + mx.log(total), known), seen


def _seen(logits: mx.array, label_smoothing: float) -> mx.array:
    """Of each row the maximum, the sum of the exponentials shifted by it and, to smooth, the mean shifted by it."""

    def of_rows(rows: mx.array) -> mx.array:
        wide = _wide(rows)
        powers, top = exp_rows(wide)
        columns = [top, row_sum(powers)]
        if label_smoothing:
            columns.append(row_sum(wide - top) / rows.shape[-1])
        return mx.concatenate(columns, axis=-1)

    return by_rows(of_rows, logits)


def _vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    label_smoothing: float = 0.0,
) -> Gradients:
    logits, targets = inputs
    if not needs[0]:
        return (None,) * len(needs)
    seen = outputs[1] if len(outputs) == 2 else _seen(logits, 0.0)
    top, total = seen[..., :1], seen[..., 1:2]
    inside, known = places(targets, logits.shape[-1])
    upstream, at = or_zero(cotangent, known)[..., None], inside[..., None]
    even = upstream * (label_smoothing / logits.shape[-1])
    # Not from what the blocks find there, which halves have rounded.
    picked = mx.exp(_wide(mx.take_along_axis(logits, at, axis=-1)) - top) / total
    correct = upstream * (picked - (1 - label_smoothing)) - even
    all_known = surely(known)

    def of_rows(
        rows: mx.array,
        top: mx.array,
        factor: mx.array,
        even: mx.array,
        at: mx.array,
        correct: mx.array,
        known: mx.array,
    ) -> mx.array:
        gradient = exp_up_to_zero(_wide(rows) - top) * factor
        if label_smoothing:
            gradient = gradient - even
        gradient = mx.put_along_axis(gradient.astype(rows.dtype), at, correct.astype(rows.dtype), axis=-1)
        # 0 times what is no number is none.
        return gradient if all_known else or_zero(gradient, known)

    beside = (top, upstream / total, even, at, correct, known[..., None])
    return (filled_by_rows(of_rows, logits, *beside), None)[: len(needs)]


def _fast(logits: mx.array, targets: mx.array, label_smoothing: float = 0.0) -> mx.array:
    at, known = places(targets, logits.shape[-1])
    return or_nan(mx.fast.cross_entropy(or_zero(logits, known[..., None]), at), known)


_ROWS = Variant("rational", _forward, _vjp)
_FAST = differentiated_by_mlx("mx.fast.cross_entropy", _fast)


def _select(logits: mx.array, targets: mx.array, label_smoothing: float = 0.0) -> tuple[Variant | None, str]:
    if not on_cpu():
        if label_smoothing or logits.size == 0:
            return None, "GPU, label smoothing" if label_smoothing else "no elements"
        return _FAST, "GPU"
    if logits.size < SMALL or (logits.dtype != mx.float32 and not is_half(logits)):
        return None, f"{logits.size} elements of {logits.dtype}"
    return _ROWS, "CPU"


def _own_forward(logits: mx.array, targets: mx.array, label_smoothing: float = 0.0) -> Outputs:
    return row_loss.losses(logits, targets, mx.float32, row_loss.LOSS, label_smoothing)


def _own_vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    label_smoothing: float = 0.0,
) -> Gradients:
    logits, targets = inputs
    if not needs[0]:
        return (None,) * len(needs)
    seen = (outputs if len(outputs) == 2 else _own_forward(logits, targets, label_smoothing))[1]
    gradient = row_loss.gradient(cotangent, logits, targets, seen, row_loss.LOSS, label_smoothing)
    return (gradient, None)[: len(needs)]


def _own_trial(logits: mx.array, targets: mx.array, label_smoothing: float = 0.0) -> Trial:
    key, sample = row_loss.trial(logits, targets, mx.float32)
    return Trial(key, lambda: (*sample(), 0.9))


_OWN = Own(
    "one reading",
    _own_forward,
    lambda logits, targets, *params: row_loss.unfit(logits, targets, targets.shape),
    lambda logits, targets, smoothing=0.0: row_loss.wins(logits, smoothing),
    _own_trial,
    _own_vjp,
)

cross_entropy = Kernel("cross_entropy", of_logits, _select, arity=2, own=_OWN)

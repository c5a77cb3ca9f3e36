"""Cross entropy, from logits and from the hidden states that a vocabulary head would turn into logits."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from . import double
from .elementary import exp_up_to_zero
from .kernel import Kernel, on_cpu
from .rms_norm import row_sum
from .slices import by_rows
from .softmax import SMALL, exp_rows, row_max
from .variant import Gradients, Outputs, Variant, is_half

# Rows and words of a block of logits: 2 MiB of float32 on the CPU, which stays in the last cache.
ROWS = 128
WORDS = 4096
GPU_ROWS, GPU_WORDS = 4096, 16384


def _reference(
    hidden: mx.array, weight: mx.array, targets: mx.array, label_smoothing: float = 0.0, gradient: bool = True
) -> mx.array:
    """Loss of each row, ``-log_softmax(hidden · weightᵀ)[target]``, in float32, of float64 in float64.

    hidden ``(n, h)``, weight ``(v, h)``, integer targets ``(n,)``, each below v. With label smoothing ε the target
    distribution is ``(1 - ε)·onehot + ε/v``, as in PyTorch.
    """
    return _of_logits_reference(_wide(hidden) @ _wide(weight).T, targets, label_smoothing)


def _of_logits_reference(logits: mx.array, targets: mx.array, label_smoothing: float = 0.0) -> mx.array:
    """``logsumexp(logits) - logits[target]`` of each row: logits ``(…, v)``, integer targets ``(…)``.

    The result is float32, of float64 float64.
    """
    wide = _wide(logits)
    picked = mx.take_along_axis(wide, targets[..., None], axis=-1)[..., 0]
    if label_smoothing:
        picked = (1 - label_smoothing) * picked + label_smoothing * wide.mean(axis=-1)
    return double.logsumexp(wide, (-1,)) - picked


def _exp() -> Callable[[mx.array], mx.array]:
    return exp_up_to_zero if on_cpu() else mx.exp


def _sizes() -> tuple[int, int]:
    return (ROWS, WORDS) if on_cpu() else (GPU_ROWS, GPU_WORDS)


def _wide(x: mx.array) -> mx.array:
    return x.astype(mx.float32) if is_half(x) else x


def _rows_forward(hidden: mx.array, weight: mx.array, gradient: bool) -> tuple[mx.array, mx.array | None]:
    """logsumexp ``(n, 1)`` of the logits of some rows and, with ``gradient``, the mean word ``softmax · weight``.

    A block of words at a time, with a running maximum (Milakov and Gimelshein 2018,
    https://arxiv.org/abs/1805.02867); sums of earlier blocks are rescaled when the maximum grows.
    """
    exp, words = _exp(), _sizes()[1]
    block = _wide(weight[:words])
    logits = hidden @ block.T
    top = row_max(logits)
    powers = exp(logits - top)
    total = row_sum(powers)
    mean = powers @ block if gradient else None
    for start in range(words, weight.shape[0], words):
        block = _wide(weight[start : start + words])
        # Without this MLX may make all blocks of logits first, that is, all logits.
        hidden = mx.depends([hidden], [total if mean is None else mean])[0]
        logits = hidden @ block.T
        highest = mx.maximum(top, row_max(logits))
        rescale = mx.exp(top - highest)
        powers = exp(logits - highest)
        total = total * rescale + row_sum(powers)
        mean = None if mean is None else mx.addmm(mean * rescale, powers, block)
        top = highest
    return top + mx.log(total), None if mean is None else mean / total


def _forward(
    hidden: mx.array, weight: mx.array, targets: mx.array, label_smoothing: float = 0.0, gradient: bool = True
) -> Outputs:
    wide, rows = _wide(hidden), _sizes()[0]
    middle = _wide(weight).mean(axis=0) if label_smoothing else None
    losses: list[mx.array] = []
    gradients: list[mx.array] = []
    tops: list[mx.array] = []
    for start in range(0, hidden.shape[0], rows):
        part = wide[start : start + rows]
        if tops:
            part = mx.depends([part], [gradients[-1] if gradient else tops[-1]])[0]
        word = _wide(weight[targets[start : start + rows]])
        if middle is not None:
            word = word * (1 - label_smoothing) + middle * label_smoothing
        top, mean = _rows_forward(part, weight, gradient)
        losses.append((top - row_sum(part * word))[:, 0])
        tops.append(top)
        if mean is not None:
            gradients.append(mean - word)
    if not gradient:
        return (mx.concatenate(losses),)
    return mx.concatenate(losses), mx.concatenate(gradients), mx.concatenate(tops)


def _vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    label_smoothing: float = 0.0,
    gradient: bool = True,
) -> Gradients:
    hidden, weight, targets = inputs
    if len(outputs) < 2:
        outputs = _forward(hidden, weight, targets, label_smoothing)
    upstream = cotangent[:, None]
    of_hidden = (outputs[1] * upstream).astype(hidden.dtype) if needs[0] else None
    of_weight = None
    if needs[1]:
        top = outputs[2] if len(outputs) > 2 else _forward(hidden, weight, targets, label_smoothing)[2]
        of_weight = _of_weight(upstream, hidden, weight, targets, top, label_smoothing)
    return (of_hidden, of_weight, None)[: len(needs)]


def _of_weight(
    upstream: mx.array,
    hidden: mx.array,
    weight: mx.array,
    targets: mx.array,
    top: mx.array,
    label_smoothing: float,
) -> mx.array:
    """``(softmax - target distribution)ᵀ · (cotangent · hidden)``, a block of words at a time."""
    exp, words = _exp(), _sizes()[1]
    wide = _wide(hidden)
    scaled = wide * upstream
    even = scaled.sum(axis=0) * (label_smoothing / weight.shape[0])
    parts: list[mx.array] = []
    for start in range(0, weight.shape[0], words):
        rows = mx.depends([wide], parts[-1:])[0] if parts else wide
        logits = rows @ _wide(weight[start : start + words]).T
        parts.append(exp(logits - top).T @ scaled)
    total = mx.concatenate(parts).at[targets].add(scaled * (label_smoothing - 1))
    return (total - even if label_smoothing else total).astype(weight.dtype)


_BLOCKS = Variant("blocks of words", _forward, _vjp)


def _select(
    hidden: mx.array, weight: mx.array, targets: mx.array, label_smoothing: float = 0.0, gradient: bool = True
) -> tuple[Variant | None, str]:
    if hidden.shape[0] == 0:
        return None, "no rows"
    if hidden.dtype == mx.float64:
        return None, "float64"
    return _BLOCKS, "the logits never exist at once"


head_cross_entropy = Kernel("head_cross_entropy", _reference, _select, arity=3)


def _of_logits_forward(logits: mx.array, targets: mx.array, label_smoothing: float = 0.0) -> Outputs:
    top, picked = _logsumexp(logits), _picked(logits, targets, label_smoothing)
    return (top - picked)[..., 0], top


def _logsumexp(logits: mx.array) -> mx.array:
    def of_rows(rows: mx.array) -> mx.array:
        powers, top = exp_rows(_wide(rows))
        return top + mx.log(row_sum(powers))

    return by_rows(of_rows, logits)


def _picked(logits: mx.array, targets: mx.array, label_smoothing: float) -> mx.array:
    picked = _wide(mx.take_along_axis(logits, targets[..., None], axis=-1))
    if not label_smoothing:
        return picked
    return (1 - label_smoothing) * picked + label_smoothing * mx.mean(_wide(logits), axis=-1, keepdims=True)


def _of_logits_vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    label_smoothing: float = 0.0,
) -> Gradients:
    logits, targets = inputs
    if not needs[0]:
        return (None,) * len(needs)
    top = outputs[1] if len(outputs) == 2 else _logsumexp(logits)
    upstream = cotangent[..., None]

    def of_rows(rows: mx.array, top: mx.array, upstream: mx.array) -> mx.array:
        even = exp_up_to_zero(_wide(rows) - top)
        return (even - label_smoothing / rows.shape[-1] if label_smoothing else even) * upstream

    gradient = by_rows(of_rows, logits, top, upstream)
    at = targets[..., None]
    correct = mx.take_along_axis(gradient, at, axis=-1) - upstream * (1 - label_smoothing)
    gradient = mx.put_along_axis(gradient, at, correct, axis=-1)
    return (gradient.astype(logits.dtype), None)[: len(needs)]


_ROWS_VARIANT = Variant("rational", _of_logits_forward, _of_logits_vjp)


def _select_of_logits(logits: mx.array, targets: mx.array, label_smoothing: float = 0.0) -> tuple[Variant | None, str]:
    if not on_cpu():
        return None, "GPU"
    if logits.size < SMALL or (logits.dtype != mx.float32 and not is_half(logits)):
        return None, f"{logits.size} elements of {logits.dtype}"
    return _ROWS_VARIANT, "CPU"


cross_entropy = Kernel("cross_entropy", _of_logits_reference, _select_of_logits, arity=2)

"""Cross entropy from hidden states and a quantised vocabulary head, which stays as it is and has no gradient.

As ``head_cross_entropy``. On the CPU the head is unpacked a block of words at a time, which many rows meet; on a GPU
both products stay quantised. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from . import quantized_linear
from .cross_entropy import cross_entropy
from .head_cross_entropy import by_words, chunk_rows, loss_and_gradient
from .kernel import on_cpu

ROWS = 256
"""Rows that meet a block of words while it is unpacked, 4 MiB of logits.

Of 600 rows and SmolLM2's head in 8 bits, forward and gradient: with 128 rows 2.0 s and 91 MB, with 512 1.5 s and
217 MB, against 1.6 s and 59 MB beside the 113 MB of an F32 head.
"""


def forward(
    hidden: mx.array,
    weight: Sequence[mx.array],
    targets: mx.array,
    bits: int,
    group: int,
    mode: str,
    gradient: bool,
) -> tuple[mx.array, ...]:
    """Loss of each row in float32 and, with ``gradient``, its gradient of the row: ``(n,)`` and ``(n, h)``.

    hidden ``(n, h)``, a head of v words as ``quantized_linear`` takes it, integer targets ``(n,)`` below v. A target
    that is none of the words gives NaN.
    """
    rows = hidden.astype(mx.float32)
    if on_cpu():
        head = _Unpacked(weight, bits, group, mode)
        return by_words(rows, head, targets, 0.0, gradient, ROWS)[: 1 + gradient]  # type: ignore[arg-type]
    losses: list[mx.array] = []
    gradients: list[mx.array] = []
    step = chunk_rows(rows.shape[0], weight[0].shape[0], rows.itemsize)
    for start in range(0, rows.shape[0], step):
        part, wanted = rows[start : start + step], targets[start : start + step]
        if losses:
            # Without this MLX may make all chunks of logits first, that is, all logits.
            part = mx.depends([part], [gradients[-1] if gradient else losses[-1]])[0]
        logits = quantized_linear.forward(part, weight, bits, group, mode)
        if gradient:
            loss, of_logits = loss_and_gradient(logits, wanted, 0.0)
            gradients.append(quantized_linear.gradient(of_logits, weight, bits, group, mode))
        else:
            loss = cross_entropy.forward(logits, wanted, 0.0)[0]
        losses.append(loss)
    return (mx.concatenate(losses), *([mx.concatenate(gradients)] if gradient else []))


class _Unpacked:
    """What ``by_words`` asks of a head's weight: its shape, and rows of it, which are unpacked then."""

    def __init__(self, weight: Sequence[mx.array], bits: int, group: int, mode: str) -> None:
        self._weight, self._packing = weight, (bits, group, mode)
        self.shape = weight[0].shape[0], quantized_linear.columns(weight, bits)

    def __getitem__(self, rows: slice | mx.array) -> mx.array:
        return quantized_linear.unpack([part[rows] for part in self._weight], *self._packing)

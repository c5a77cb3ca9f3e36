"""The records of cross entropy: from logits, and from the hidden states that a vocabulary head turns into logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...dtype import DType
from ...error import ShapeMismatchBinaryOpError, ShapeMismatchError
from ...kernels.cross_entropy import cross_entropy
from ...kernels.head_cross_entropy import head_cross_entropy
from ...shape import Shape, expect_rank
from ..operation import Gradients, Meta, Metas, Operation
from ..work import Work, elements
from .ids import blank, expect_ids, guard
from .linalg import expect_floats


class CrossEntropy(Operation):
    """Loss of each row of logits: ``-log_softmax(logits)[target]``, logits ``(…, v)`` and targets ``(…)`` to ``(…)``.

    In F32, of F64 in F64. The log-probabilities of all classes never exist; of arrays as large as the logits there is
    their gradient alone. With label smoothing ε the target distribution is ``(1 - ε)·onehot + ε/v``. Ids are as in
    ``gather``: one outside raises ``InvalidIndexError`` when evaluated; the largest value of their dtype names nothing,
    which gives 0, and the row a gradient of 0 whatever it holds.
    """

    arity = 2
    work = "softmax"
    # Maximum, difference, exponential and sum of every class.
    flops_per_element = 4
    label_smoothing: float = 0.0

    def infer(self, logits: Meta, targets: Meta) -> Meta:
        expect_floats("cross_entropy", logits)
        expect_ids("cross_entropy", targets)
        if not logits.shape or logits.shape[:-1] != targets.shape:
            takes = "logits (…, v) and a target for each row, (…)"
            raise ShapeMismatchBinaryOpError("cross_entropy", logits.shape, targets.shape, takes)
        return Meta(targets.shape, DType.F64 if logits.dtype is DType.F64 else DType.F32)

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.work, elements(inputs[0])

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        return self.flops_per_element * elements(inputs[0])

    def lower(self, logits: mx.array, targets: mx.array) -> mx.array:
        return self.lower_and_save(logits, targets)[0]

    def lower_and_save(self, logits: mx.array, targets: mx.array) -> tuple[mx.array, ...]:
        places, nothing = self._guarded(targets, logits.shape[-1])
        if not logits.size:
            return (mx.zeros(targets.shape, mx.float64 if logits.dtype == mx.float64 else mx.float32),)
        losses, *seen = cross_entropy.forward(logits, places, self.label_smoothing)
        return (blank(losses, nothing), *seen)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        logits, targets = inputs
        if not logits.size:
            return mx.zeros_like(logits), None
        places, _ = self._guarded(targets, logits.shape[-1])
        return cross_entropy.vjp(cotangent, (logits, places), output, (True, False), self.label_smoothing)

    def _guarded(self, targets: mx.array, classes: int) -> tuple[mx.array, mx.array | None]:
        """Ids for the kernel, which leaves rows out whose id is none of the classes, and a mask of these."""
        places, nothing = guard("cross_entropy", targets, classes)
        if nothing is None:
            return places, None
        # Of U8 no number may be left that is none of the classes.
        return mx.where(nothing, mx.array(-1, mx.int64), places), nothing


def expect_head(op: str, hidden: Meta, weight: Meta, ids: Meta, called: str) -> None:
    """Raise unless these are hidden states ``(n, h)``, a head's weight ``(v, h)`` and ids ``(n,)``, ``called`` so."""
    expect_floats(op, hidden, weight)
    expect_ids(op, ids)
    expect_rank(hidden.shape, 2, op)
    if len(weight.shape) != 2 or weight.shape[1] != hidden.shape[1]:
        raise ShapeMismatchBinaryOpError(op, hidden.shape, weight.shape, "hidden (n, h) and weight (v, h)")
    if tuple(ids.shape) != (hidden.shape[0],):
        raise ShapeMismatchError(f"{op}: got {called} {tuple(ids.shape)}; takes one for each of {hidden.shape[0]} rows")


class HeadCrossEntropy(Operation):
    """Loss of each row from its hidden state: ``-log_softmax(hidden · weightᵀ)[target]``.

    hidden ``(n, h)``, weight ``(v, h)``, targets ``(n,)`` to the losses ``(n,)`` in F32, of F64 in F64; smoothing and
    ids as in ``CrossEntropy``. But for F64 the logits of all rows never exist at once; where a gradient is taken, the
    hidden state's is computed from the same exponentials. Rows whose target names nothing are left out, unless
    ``mx.compile`` hides which. Hsu et al. 2024 (Liger Kernel), https://arxiv.org/abs/2410.10989.
    """

    arity = 3
    work = "product"
    label_smoothing: float = 0.0

    def infer(self, hidden: Meta, weight: Meta, targets: Meta) -> Meta:
        expect_head("linear_cross_entropy", hidden, weight, targets, "targets")
        return Meta(Shape((hidden.shape[0],)), DType.F64 if hidden.dtype is DType.F64 else DType.F32)

    def steps(self, inputs: Sequence[Any], output: Metas) -> tuple[Work, int]:
        return "softmax", inputs[0].shape[0] * inputs[1].shape[0]

    def flops(self, inputs: Sequence[Any], output: Metas) -> int:
        (rows, width), words = inputs[0].shape, inputs[1].shape[0]
        # The logits, their maximum, difference, exponential and sum; the target's logit by itself.
        return int(rows * words * (2 * width + 4) + 2 * rows * width)

    def vjp_steps(self, inputs: Sequence[Any], output: Metas, needs: Sequence[bool]) -> tuple[Work, int]:
        return "softmax", inputs[0].shape[0] * inputs[1].shape[0] * needs[1]

    def vjp_flops(self, inputs: Sequence[Any], output: Metas, needs: Sequence[bool]) -> int:
        (rows, width), words = inputs[0].shape, inputs[1].shape[0]
        # A product with the exponentials for each; those of the weight's are computed again from the logits.
        return int(rows * words * (2 * width * needs[0] + (4 * width + 4) * needs[1]))

    def lower(self, hidden: mx.array, weight: mx.array, targets: mx.array) -> mx.array:
        return self._losses(hidden, weight, targets, False)[0]

    def lower_and_save(self, hidden: mx.array, weight: mx.array, targets: mx.array) -> tuple[mx.array, ...]:
        return self._losses(hidden, weight, targets, True)

    def _losses(self, hidden: mx.array, weight: mx.array, targets: mx.array, gradient: bool) -> tuple[mx.array, ...]:
        places, nothing, rows = guarded(targets, weight.shape[0])
        if not weight.shape[0] or (rows is not None and not rows.size):
            return (mx.zeros(targets.shape, mx.float64 if hidden.dtype == mx.float64 else mx.float32),)
        if rows is not None:
            hidden, places = hidden[rows], places[rows]
        else:
            hidden = blank(hidden, nothing)
        losses, *saved = head_cross_entropy.forward(hidden, weight, places, self.label_smoothing, gradient)
        if rows is None:
            return (blank(losses, nothing), *saved)
        return (spread(losses, rows, targets.shape[0]), *saved)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        hidden, weight, targets = inputs
        places, nothing, rows = guarded(targets, weight.shape[0])
        if not weight.shape[0] or (rows is not None and not rows.size):
            return mx.zeros_like(hidden), mx.zeros_like(weight), None
        if rows is None:
            hidden, upstream = blank(hidden, nothing), blank(cotangent, nothing)
            return head_cross_entropy.vjp(upstream, (hidden, weight, places), output, needs, self.label_smoothing)
        losses, *saved = output if isinstance(output, tuple) else (output,)
        given, seen = (hidden[rows], weight, places[rows]), (losses[rows], *saved)
        of_rows, of_weight, _ = head_cross_entropy.vjp(cotangent[rows], given, seen, needs, self.label_smoothing)
        return None if of_rows is None else spread(of_rows, rows, hidden.shape[0]), of_weight, None


def guarded(targets: mx.array, words: int) -> tuple[mx.array, mx.array | None, mx.array | None]:
    """Guarded targets, a mask of those that name nothing, and the rows of the others if some do and it is known."""
    places, nothing = guard("linear_cross_entropy", targets, words)
    if nothing is None:
        return places, None, None
    try:
        left_out = np.array(nothing)
    except ValueError:
        return places, nothing, None
    return places, nothing, mx.array(np.flatnonzero(~left_out).astype(np.int32))


def spread(part: mx.array, rows: mx.array, count: int) -> mx.array:
    """``count`` rows: those of ``part`` where they belong, the others 0."""
    return mx.zeros((count, *part.shape[1:]), part.dtype).at[rows].add(part)

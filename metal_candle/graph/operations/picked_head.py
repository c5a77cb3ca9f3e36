"""The record of single log-probabilities of a vocabulary head, from hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels.head_cross_entropy import head_cross_entropy
from ...kernels.variant import is_half
from ...shape import Shape
from ..operation import Gradients, Meta, Operation, Sample
from ..work import Work
from .cross_entropy import HeadCrossEntropy, expect_head
from .ids import blank, guard


class PickedHeadLogSoftmax(Operation):
    """log_softmax(hidden · weightᵀ) of each row at its id: ``(n, h)``, weight ``(v, h)``, ids ``(n,)`` to ``(n,)``.

    The negative of ``HeadCrossEntropy``, rounded to the hidden states' dtype, for ids as in ``gather``: one outside
    raises ``InvalidIndexError`` when evaluated, the largest value of their dtype gives 0.
    """

    arity = 3
    samples = (
        Sample(((5, 7), (11, 7), (5,)), ids=((2, 11),)),
        Sample(((3, 4), (2, 4), (3,)), ids=((2, 2),)),
        Sample(((0, 4), (2, 4), (0,)), ids=((2, 2),)),
    )
    work = "product"

    def infer(self, hidden: Meta, weight: Meta, ids: Meta) -> Meta:
        expect_head("picked_head_log_softmax", hidden, weight, ids, "ids")
        return Meta(Shape((hidden.shape[0],)), hidden.dtype)

    def steps(self, inputs: Sequence[Any], output: Any) -> tuple[Work, int]:
        return HeadCrossEntropy().steps(inputs, output)

    def flops(self, inputs: Sequence[Any], output: Any) -> int:
        return HeadCrossEntropy().flops(inputs, output)

    def vjp_steps(self, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> tuple[Work, int]:
        return HeadCrossEntropy().vjp_steps(inputs, output, needs)

    def vjp_flops(self, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> int:
        return HeadCrossEntropy().vjp_flops(inputs, output, needs)

    def lower(self, hidden: mx.array, weight: mx.array, ids: mx.array) -> mx.array:
        return self._picked(hidden, weight, ids, False)[0]

    def lower_and_save(self, hidden: mx.array, weight: mx.array, ids: mx.array) -> tuple[mx.array, ...]:
        return self._picked(hidden, weight, ids, True)

    def _picked(self, hidden: mx.array, weight: mx.array, ids: mx.array, gradient: bool) -> tuple[mx.array, ...]:
        places, nothing = guard(self.key, ids, weight.shape[0])
        loss, *saved = head_cross_entropy.forward(hidden, weight, places, 0.0, gradient)
        return (blank(-loss, nothing).astype(hidden.dtype), *saved)

    @staticmethod
    def numpy(hidden: Any, weight: Any, ids: Any) -> Any:
        logits = hidden @ weight.T
        shifted = logits - logits.max(axis=-1, keepdims=True)
        rest = np.log(np.exp(shifted).sum(axis=-1))
        return np.take_along_axis(shifted, ids[:, None].astype(np.int64), axis=-1)[:, 0] - rest

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        hidden, weight, ids = inputs
        places, nothing = guard(self.key, ids, weight.shape[0])
        wide = cotangent.astype(mx.float32) if is_half(cotangent) else cotangent
        upstream = blank(-wide, nothing)
        return head_cross_entropy.vjp(upstream, (hidden, weight, places), output, needs)

"""The record of single log-probabilities, those that ids name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import ShapeMismatchBinaryOpError
from ...kernels.picked_log_softmax import picked_log_softmax
from ..operation import Gradients, Meta, Metas, Operation, Sample
from ..work import Work, elements
from .ids import blank, expect_ids, guard
from .linalg import expect_floats


class PickedLogSoftmax(Operation):
    """log_softmax over the last dim, gathered there: ``(…, v)`` with ids ``(…, k)`` to ``(…, k)``.

    The log-probabilities of all classes never exist. Ids and the sizes of their leading dims are as in ``gather``: one
    outside raises ``InvalidIndexError`` when evaluated, the largest value of their dtype gives 0.
    """

    arity = 2
    samples = (
        Sample(((5, 123), (5, 1)), ids=((1, 123),)),
        Sample(((40, 123), (40, 3)), ids=((1, 123),)),
        Sample(((2, 3, 4), (2, 2, 6)), ids=((1, 4),)),
        Sample(((7,), (2,)), ids=((1, 7),)),
        Sample(((3, 5), (0, 2)), ids=((1, 5),)),
        Sample(((3, 5), (3, 0)), ids=((1, 5),)),
    )

    work = "softmax"
    # Maximum, difference, exponential and sum of every class.
    flops_per_element = 4

    def infer(self, x: Meta, ids: Meta) -> Meta:
        expect_floats("picked_log_softmax", x)
        expect_ids("picked_log_softmax", ids)
        if not x.shape or len(x.shape) != len(ids.shape) or any(b > a for a, b in zip(x.shape[:-1], ids.shape[:-1])):
            takes = "ids (…, k) with leading dims no larger than those of (…, v)"
            raise ShapeMismatchBinaryOpError("picked_log_softmax", x.shape, ids.shape, takes)
        return Meta(ids.shape, x.dtype)

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.work, elements(inputs[0])

    def lower(self, x: mx.array, ids: mx.array) -> mx.array:
        return self.lower_and_save(x, ids)[0]

    def lower_and_save(self, x: mx.array, ids: mx.array) -> tuple[mx.array, ...]:
        places, nothing = guard("picked_log_softmax", ids, x.shape[-1])
        if x.shape[-1] == 0:
            return (mx.zeros(ids.shape, x.dtype),)
        result, *saved = picked_log_softmax.forward(_rows_of(x, ids), places)
        return (blank(result, nothing), *saved)

    @staticmethod
    def numpy(x: Any, ids: Any) -> Any:
        rows = x[tuple(slice(size) for size in ids.shape[:-1])]
        shifted = rows - rows.max(axis=-1, keepdims=True, initial=-np.inf)
        rest = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return np.take_along_axis(shifted, ids, axis=-1) - rest

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        x, ids = inputs
        places, nothing = guard("picked_log_softmax", ids, x.shape[-1])
        if not ids.size or not x.size:
            return mx.zeros_like(x), None
        rows = _rows_of(x, ids)
        gradient = picked_log_softmax.vjp(blank(cotangent, nothing), (rows, places), output, (True, False))[0]
        if gradient is None or rows.shape == x.shape:
            return gradient, None
        return mx.pad(gradient, [(0, whole - part) for whole, part in zip(x.shape, rows.shape)]), None


def _rows_of(x: mx.array, ids: mx.array) -> mx.array:
    """The rows of x that ids reach, whose leading dims may be shorter."""
    if x.shape[:-1] == ids.shape[:-1]:
        return x
    return x[tuple(slice(size) for size in ids.shape[:-1])]

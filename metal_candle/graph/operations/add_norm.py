"""Records of a sum and its norm, which both are results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import ShapeMismatchBinaryOpError, ShapeMismatchError
from ...kernels.add_layer_norm import add_layer_norm
from ...kernels.add_rms_norm import add_rms_norm
from ..operation import Arrays, Gradients, Meta, Metas, Operation
from ..work import Work, elements
from .linalg import expect_floats
from .norm import LayerNorm, RMSNorm


class _AddNorm(Operation, abstract=True):
    """Family: x + residual, of equal shapes, and the norm of that over the last dim; then rows ``(n,)`` beside."""

    arity = None
    work = "norm"
    most_rows = 0
    eps: float

    def infer(self, x: Meta, residual: Meta, *beside: Meta) -> Metas:
        expect_floats(self.key, x, residual, *beside)
        if not x.shape or residual.shape != x.shape:
            takes = "two tensors (…, n) of one shape"
            raise ShapeMismatchBinaryOpError(self.key, x.shape, residual.shape, takes)
        if len(beside) > self.most_rows:
            raise ShapeMismatchError(f"{self.key}: got {2 + len(beside)} tensors; takes up to {2 + self.most_rows}")
        for row in beside:
            if tuple(row.shape) != (x.shape[-1],):
                raise ShapeMismatchBinaryOpError(self.key, x.shape, row.shape, "(…, n) and rows (n,)")
        return x, x

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.work, elements(inputs[0])

    def _given(self, beside: Sequence[mx.array]) -> tuple[mx.array | None, ...]:
        """The rows beside, ``None`` for what is not given."""
        return (*beside, *[None] * (self.most_rows - len(beside)))


class AddRMSNorm(_AddNorm):
    """x + residual, and that divided by the root of its mean square and eps over the last dim, · weight if given.

    Weight ``(n,)``. The sum is rounded to its dtype before it is normed.
    """

    key = "add_rms_norm"
    most_rows = 1
    eps: float

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        return (RMSNorm.flops_per_element + len(inputs) - 1) * elements(inputs[0])

    def lower(self, x: mx.array, residual: mx.array, *beside: mx.array) -> Arrays:
        return add_rms_norm.forward(x, residual, *self._given(beside), self.eps)[:2]

    @staticmethod
    def numpy(x: Any, residual: Any, *rest: Any) -> Any:
        total = x + residual
        normed = total / np.sqrt(np.mean(total * total, axis=-1, keepdims=True) + rest[-1])
        return total, (normed * rest[0] if len(rest) > 1 else normed)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        given, wanted = (*inputs[:2], *self._given(inputs[2:])), (*needs, False)[:3]
        return add_rms_norm.vjp(cotangent, given, output, wanted, self.eps)[: len(inputs)]


class AddLayerNorm(_AddNorm):
    """x + residual, and its layer norm over the last dim, · weight and + bias where they are given.

    Weight and bias ``(n,)``. The sum is rounded to its dtype before it is normed.
    """

    key = "add_layer_norm"
    most_rows = 2
    eps: float

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        return LayerNorm.flops(LayerNorm(self.eps), inputs[1:], inputs[0]) + elements(inputs[0])

    def lower(self, x: mx.array, residual: mx.array, *beside: mx.array) -> Arrays:
        return add_layer_norm.forward(x, residual, *self._given(beside), self.eps)[:2]

    @staticmethod
    def numpy(x: Any, residual: Any, *rest: Any) -> Any:
        total = x + residual
        return total, LayerNorm.numpy(total, *rest)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        given, wanted = (*inputs[:2], *self._given(inputs[2:])), (*needs, False, False)[:4]
        return add_layer_norm.vjp(cotangent, given, output, wanted, self.eps)[: len(inputs)]

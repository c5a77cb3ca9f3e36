"""Records of quantised weights: the product with one, and rows of one.

After x or the ids come the weight's arrays as ``kernels/quantized_linear.py`` takes them: codes, scales and biases in
groups of ``group`` (in another ``mode`` than affine no biases), or one float32 array where ``bits`` is 32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...dtype import DType
from ...error import InvalidIndexError, ShapeMismatchBinaryOpError, UnsupportedDTypeForOpError
from ...kernels import quantized_head, quantized_linear
from ...shape import Shape
from ..operation import Gradients, Meta, Metas, Operation
from ..work import Work, elements, size_in_bytes
from .cross_entropy import expect_head, guarded, spread
from .ids import are_known, blank, expect_ids
from .linalg import product_flops


class QuantizedLinear(Operation):
    """``x · weightᵀ`` with a quantised weight: ``(…, m, in)`` to ``(…, m, out)`` in x's dtype.

    The weight has no gradient; x has one, which candle's product lacks.
    """

    arity = None
    candle = "QMatMul::forward(&self, xs: &Tensor) -> Result<Tensor>"
    work = "product"
    bits: int
    group: int = quantized_linear.GROUP
    mode: str = quantized_linear.AFFINE

    def infer(self, x: Meta, *weight: Meta) -> Meta:
        shape = _shape(weight, self.bits)
        if not x.dtype.is_float_:
            raise UnsupportedDTypeForOpError("qmatmul", x.dtype, "bf16, f16, f32 or f64")
        if len(x.shape) < 2 or x.shape[-1] != shape[1]:
            raise ShapeMismatchBinaryOpError("qmatmul", x.shape, shape, "(…, m, in) and a weight (out, in)")
        return Meta(Shape((*x.shape[:-1], shape[0])), x.dtype)

    def steps(self, inputs: Sequence[Any], output: Metas) -> tuple[Work, int]:
        # The weight, unpacked.
        return "select", 0 if self.bits == quantized_linear.DENSE else math.prod(_shape(inputs[1:], self.bits))

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        return product_flops(inputs, output)

    def lower(self, x: mx.array, *weight: mx.array) -> mx.array:
        return quantized_linear.forward(x, weight, self.bits, self.group, self.mode)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        of_x = quantized_linear.gradient(cotangent, inputs[1:], self.bits, self.group, self.mode)
        return of_x, *[None for _ in inputs[1:]]


class QuantizedEmbedding(Operation):
    """Rows of a quantised table, unpacked: ids ``(…)`` to float32 ``(…, in)``.

    Any id outside the table, the largest of its dtype too, raises ``InvalidIndexError`` when the node is evaluated
    (inside ``mx.compile``, where there are no values to look at, its row is zeros).
    """

    arity = None
    candle = "QTensor::embedding(&self, ids: &Tensor) -> Result<Tensor>"
    work = "select"
    bits: int
    group: int = quantized_linear.GROUP
    mode: str = quantized_linear.AFFINE

    def infer(self, ids: Meta, *table: Meta) -> Meta:
        expect_ids("embedding", ids)
        return Meta(Shape((*ids.shape, _shape(table, self.bits)[1])), DType.F32)

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        # scale · code + bias
        return 0 if self.bits == quantized_linear.DENSE else 2 * elements(output)

    def traffic(self, inputs: Sequence[Any], output: Metas) -> int:
        ids, *table = inputs
        row = size_in_bytes(*table) // max(1, table[0].shape[0])
        return size_in_bytes(ids, output) + elements(ids) * int(row)

    def lower(self, ids: mx.array, *table: mx.array) -> mx.array:
        size, width = table[0].shape[0], quantized_linear.columns(table, self.bits)
        flat = ids.flatten()
        inside = _check_ids(flat, size) if ids.size else None
        if not (ids.size and size):
            return mx.zeros((*ids.shape, width), mx.float32)
        # MLX would read foreign memory outside the table.
        known = flat if inside is None else mx.where(inside, flat, mx.array(0, ids.dtype))
        parts = [mx.take(part, known, axis=0) for part in table]
        rows = quantized_linear.unpack(parts, self.bits, self.group, self.mode)
        if inside is not None:
            rows = mx.where(inside[:, None], rows, mx.array(0, mx.float32))
        return rows.reshape(*ids.shape, width)


class QuantizedHeadCrossEntropy(Operation):
    """``HeadCrossEntropy`` with a quantised head, which is never unpacked as a whole.

    hidden ``(n, h)``, targets ``(n,)`` and the head's arrays to the losses ``(n,)`` in F32. The hidden states alone
    have a gradient.
    """

    arity = None
    work = "product"
    bits: int
    group: int = quantized_linear.GROUP
    mode: str = quantized_linear.AFFINE

    def infer(self, hidden: Meta, targets: Meta, *head: Meta) -> Meta:
        weight = Meta(Shape(_shape(head, self.bits)), DType.F32)
        if hidden.dtype is DType.F64:
            raise UnsupportedDTypeForOpError("linear_cross_entropy", hidden.dtype, "bf16, f16 or f32")
        expect_head("linear_cross_entropy", Meta(hidden.shape, DType.F32), weight, targets, "targets")
        return Meta(Shape((hidden.shape[0],)), DType.F32)

    def steps(self, inputs: Sequence[Any], output: Metas) -> tuple[Work, int]:
        return "softmax", inputs[0].shape[0] * inputs[2].shape[0]

    def flops(self, inputs: Sequence[Any], output: Metas) -> int:
        (rows, width), words = inputs[0].shape, inputs[2].shape[0]
        return int(rows * words * (2 * width + 4) + 2 * rows * width)

    def lower(self, hidden: mx.array, targets: mx.array, *head: mx.array) -> mx.array:
        return self._losses(hidden, targets, head, False)[0]

    def lower_and_save(self, hidden: mx.array, targets: mx.array, *head: mx.array) -> tuple[mx.array, ...]:
        return self._losses(hidden, targets, head, True)

    def _losses(
        self, hidden: mx.array, targets: mx.array, head: Sequence[mx.array], gradient: bool
    ) -> tuple[mx.array, ...]:
        """Losses and the gradient of each row's, 0 where the target names nothing."""
        places, nothing, rows = guarded(targets, head[0].shape[0])
        if not targets.size or not head[0].shape[0] or (rows is not None and not rows.size):
            return mx.zeros(targets.shape, mx.float32), *([mx.zeros(hidden.shape, mx.float32)] if gradient else [])
        given = (blank(hidden, nothing), places) if rows is None else (hidden[rows], places[rows])
        found = quantized_head.forward(given[0], head, given[1], self.bits, self.group, self.mode, gradient)
        if rows is None:
            return tuple(blank(each, nothing) for each in found)
        return tuple(spread(each, rows, targets.shape[0]) for each in found)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        hidden, targets, *head = inputs
        saved = output if isinstance(output, tuple) and len(output) > 1 else self._losses(hidden, targets, head, True)
        of_hidden = (saved[1] * cotangent[:, None]).astype(hidden.dtype) if needs[0] else None
        return of_hidden, None, *[None for _ in head]


def _shape(weight: Sequence[Meta], bits: int) -> tuple[int, int]:
    rows, packed = weight[0].shape
    return rows, packed * 32 // bits


def _check_ids(ids: mx.array, size: int) -> mx.array | None:
    """Raise for ids outside the table; where their values are not known, the mask of those inside."""
    if are_known(size):
        return None
    try:
        values = np.array(ids)
    except ValueError:
        wide = ids.astype(mx.int64)
        return (wide >= 0) & (wide < size)
    wrong = values[(values < 0) | (values >= size)]
    if wrong.size:
        raise InvalidIndexError("embedding", int(wrong.flat[0]), size)
    return None

"""Records of matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...dtype import DType
from ...error import DTypeMismatchError, ShapeMismatchBinaryOpError, UnsupportedDTypeForOpError
from ...kernels.linear import linear
from ...kernels.matmul import as_rows, matmul
from ...shape import Shape, broadcast_shapes
from ..operation import Gradients, Meta, Metas, Operation, Sample
from ..work import elements
from .binary import reduce_to


def expect_floats(op: str, *metas: Meta) -> None:
    """Raise unless all are float tensors of one dtype."""
    for meta in metas:
        if meta.dtype is not metas[0].dtype:
            raise DTypeMismatchError(op, metas[0].dtype, meta.dtype)
        if not meta.dtype.is_float_:
            raise UnsupportedDTypeForOpError(op, meta.dtype, "bf16, f16, f32 or f64")


def _product_shape(lhs: Shape, rhs: Shape, op: str) -> Shape:
    """The shape of a matrix product, leading dims broadcast. Raises ``ShapeMismatchBinaryOpError`` naming ``op``."""
    if len(lhs) < 2 or len(rhs) < 2 or lhs[-1] != rhs[-2]:
        raise ShapeMismatchBinaryOpError(op, lhs, rhs, "(…, m, k) and (…, k, n)")
    if len(lhs) == len(rhs) == 2:
        return Shape((lhs[0], rhs[1]))
    try:
        leading = broadcast_shapes(lhs[:-2], rhs[:-2], op)
    except ShapeMismatchBinaryOpError:
        raise ShapeMismatchBinaryOpError(op, lhs, rhs, "leading dims that broadcast") from None
    return Shape((*leading, lhs[-2], rhs[-1]))


def product_flops(inputs: Sequence[Metas], output: Metas) -> int:
    """FLOPs of a matrix product whose left factor is the first input: 2·m·n·k for each leading index."""
    lhs: Any = inputs[0]
    return 2 * elements(output) * int(lhs.shape[-1])


class Matmul(Operation):
    """Matrix product ``(…, m, k) · (…, k, n)`` to ``(…, m, n)`` of float tensors; leading dims broadcast.

    Offered as ``matmul``, which does not broadcast, as ``broadcast_matmul`` and as ``@``. A ``k`` of 0 gives zeros.
    """

    arity = 2
    candle = "Tensor::matmul(&self, rhs: &Self) -> Result<Self>"
    methods = ("broadcast_matmul",)
    samples = (
        Sample(((5, 13), (13, 3))),
        Sample(((2, 3, 4), (2, 4, 5))),
        Sample(((2, 1, 3, 4), (5, 4, 2))),
        Sample(((3, 0), (0, 2))),
        Sample(((1, 4), (4, 1))),
    )
    work = "product"

    @classmethod
    def bind(cls, lhs: Meta, rhs: Meta) -> Operation:
        """``broadcast_matmul``, whose errors about shapes carry its name."""
        _product_shape(lhs.shape, rhs.shape, "broadcast_matmul")
        return cls()

    @staticmethod
    def numpy(lhs: Any, rhs: Any) -> Any:
        return np.matmul(lhs, rhs)

    def infer(self, lhs: Meta, rhs: Meta) -> Meta:
        expect_floats("matmul", lhs, rhs)
        return Meta(_product_shape(lhs.shape, rhs.shape, "matmul"), lhs.dtype)

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        return product_flops(inputs, output)

    def lower(self, lhs: mx.array, rhs: mx.array) -> mx.array:
        return matmul(lhs, rhs)

    def lowering(self, lhs: Meta, rhs: Meta) -> Callable[..., mx.array]:
        return mx.matmul if lhs.dtype in (DType.F32, DType.F64) else self.lower

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        lhs, rhs = inputs
        left = reduce_to(matmul(cotangent, mx.swapaxes(rhs, -1, -2)), lhs) if needs[0] else None
        if not needs[1]:
            return left, None
        if rhs.ndim == 2 and lhs.ndim > 2:
            # One product over all rows instead of a product per leading index and a sum over them.
            return left, matmul(as_rows(lhs).T, as_rows(cotangent))
        return left, reduce_to(matmul(mx.swapaxes(lhs, -1, -2), cotangent), rhs)


class Linear(Operation):
    """``x · weightᵀ``: ``(…, in)`` with weight ``(out, in)`` to ``(…, out)``."""

    arity = 2
    candle = "candle_nn::Linear::forward(&self, x: &Tensor) -> Result<Tensor>"
    samples = (Sample(((5, 13), (3, 13))), Sample(((2, 3, 4), (7, 4))), Sample(((4,), (3, 4))))
    work = "product"

    @staticmethod
    def numpy(x: Any, weight: Any) -> Any:
        return x @ weight.T

    def infer(self, x: Meta, weight: Meta) -> Meta:
        expect_floats("linear", x, weight)
        if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
            raise ShapeMismatchBinaryOpError("linear", x.shape, weight.shape, "(…, in) and weight (out, in)")
        return Meta(Shape((*x.shape[:-1], weight.shape[0])), x.dtype)

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        return product_flops(inputs, output)

    def lower(self, x: mx.array, weight: mx.array) -> mx.array:
        return linear.forward(x, weight)[0]

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return linear.vjp(cotangent, inputs, output, needs)

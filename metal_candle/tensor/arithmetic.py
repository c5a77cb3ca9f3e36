"""Tensor methods of arithmetic that are more than one operation, in terms of those that are one."""

from __future__ import annotations

from typing import Any, TypeVar

from ..error import Error, ShapeMismatchBinaryOpError
from ..graph.operations.linalg import Matmul
from .base import TensorBase
from .methods import TensorMethods

A = TypeVar("A", bound="ArithmeticMethods")
_matmul = Matmul()


class ArithmeticMethods(TensorMethods):
    """Products, and what Python's operators need beside the records."""

    __slots__ = ()

    def matmul(self: A, rhs: TensorBase) -> A:
        """Matrix product ``(…, m, k) · (…, k, n)`` to ``(…, m, n)``, with equal leading dims.

        Raises ``ShapeMismatchBinaryOpError``; ``broadcast_matmul`` broadcasts the leading dims.

        candle: ``Tensor::matmul(&self, rhs: &Self) -> Result<Self>``
        """
        if not isinstance(rhs, TensorBase):
            raise Error(f"matmul: got {type(rhs).__name__} for an operand; takes a tensor")
        left, right = self.shape, rhs.shape
        if not len(left) == len(right) == 2 and left[:-2] != right[:-2]:
            takes = "equal leading dims; broadcast_matmul broadcasts"
            raise ShapeMismatchBinaryOpError("matmul", left, right, takes)
        return self._record(_matmul, rhs)

    def __matmul__(self: A, rhs: Any) -> A:
        return self._record(_matmul, rhs) if isinstance(rhs, TensorBase) else NotImplemented

    def __neg__(self: A) -> A:
        return self.neg()

    def __pow__(self: A, e: float) -> A:
        return self.powf(e)

    def softmax_stable(self: A) -> A:
        """Softmax over the last dim; metal-candle's ``TensorExt::softmax_stable``."""
        return self.softmax(-1)

    def softmax_fused(self: A) -> A:
        """Softmax over the last dim; metal-candle's ``CustomMetalOps::softmax_fused``."""
        return self.softmax(-1)

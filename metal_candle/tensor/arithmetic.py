"""Tensor methods of arithmetic that are more than one operation, in terms of those that are one."""

from __future__ import annotations

import functools
import math
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from ..error import ArgumentTypeError, Error, ShapeMismatchBinaryOpError
from ..error.text import described
from ..graph.node import record
from ..graph.operations.comparison import CmpOp
from ..graph.operations.linalg import Matmul
from .arguments import makes_one, no_tensor, renamed
from .base import TensorBase
from .methods import TensorMethods

A = TypeVar("A", bound="ArithmeticMethods")
_matmul = Matmul()
_DATA = (list, tuple, np.ndarray, mx.array)
# A layer multiplies the same shapes again and again.
_product = functools.lru_cache(1024)(_matmul.infer)


class ArithmeticMethods(TensorMethods):
    """Products, and what Python's operators need beside the records."""

    __slots__ = ()

    def matmul(self: A, rhs: TensorBase) -> A:
        """Matrix product ``(…, m, k) · (…, k, n)`` to ``(…, m, n)``; the result has the left's leading dims.

        Ranks are equal and leading dims hold the same number of matrices, as candle demands; ``broadcast_matmul``
        broadcasts them. Raises ``ShapeMismatchBinaryOpError``, ``DTypeMismatchError``, and for integers
        ``UnsupportedDTypeForOpError``.

        candle: ``Tensor::matmul(&self, rhs: &Self) -> Result<Self>``
        """
        if not isinstance(rhs, TensorBase):
            raise no_tensor("matmul", rhs)
        node, other = self._node, self._operand(rhs)
        left, right = node.shape, other.shape
        if len(left) == len(right) == 2:
            return self._wrap(record(_matmul, (node, other), None, _product(node.meta, other.meta)))
        if left[:-2] != right[:-2]:
            if len(left) != len(right) or math.prod(left[:-2]) != math.prod(right[:-2]):
                takes = "equal leading dims; broadcast_matmul broadcasts"
                raise ShapeMismatchBinaryOpError("matmul", left, right, takes)
            rhs = self._lift(rhs).reshape((*left[:-2], *right[-2:]))
        return self._record(_matmul, rhs)

    def dot(self: A, rhs: TensorBase) -> A:
        """Sum of the products of two 1-D tensors of one length, rank 0; the dtype is kept.

        Raises ``ShapeMismatchBinaryOpError``, ``DTypeMismatchError``.

        candle: ``Tensor::dot(&self, rhs: &Self) -> Result<Self>``
        """
        if not isinstance(rhs, TensorBase):
            raise no_tensor("dot", rhs)
        if len(self.shape) != 1 or self.shape != rhs.shape:
            raise ShapeMismatchBinaryOpError("dot", self.shape, rhs.shape, "two 1-D tensors of one length")
        return self.mul(rhs).sum_all()

    def mv(self: A, rhs: TensorBase) -> A:
        """Product of a matrix ``(m, n)`` and a vector ``(n,)`` to ``(m,)``.

        Raises ``ShapeMismatchBinaryOpError``, ``DTypeMismatchError``, and for integers ``UnsupportedDTypeForOpError``.

        candle: ``Tensor::mv(&self, rhs: &Self) -> Result<Self>``
        """
        if not isinstance(rhs, TensorBase):
            raise no_tensor("mv", rhs)
        if len(self.shape) != 2 or len(rhs.shape) != 1 or self.shape[1] != rhs.shape[0]:
            raise ShapeMismatchBinaryOpError("mv", self.shape, rhs.shape, "a matrix (m, n) and a vector (n,)")
        return self._record(_matmul, self._lift(rhs).unsqueeze(1)).squeeze(1)

    def clamp(self: A, min: TensorBase | float, max: TensorBase | float) -> A:
        """Elements below ``min`` become ``min``, then those above ``max`` become ``max``.

        Each bound is a number, cast to the tensor's dtype, or a tensor of its shape. Where ``min`` is above ``max`` the
        result is ``max``. At a bound half of the gradient passes, as in candle. NaN stays NaN.

        candle: ``Tensor::clamp<T1: TensorOrScalar, T2: TensorOrScalar>(&self, min: T1, max: T2) -> Result<Self>``
        """
        try:
            return self.maximum(min).minimum(max)
        except Error as error:
            renamed(error, "clamp", ("maximum", "minimum"))
            raise

    def cmp(self: A, rhs: TensorBase | float, op: CmpOp) -> A:
        """The comparison ``op`` with a tensor of the same shape, or a number: U8, 1 where it holds.

        candle: ``Tensor::cmp<T: TensorOrScalar>(&self, rhs: T, op: CmpOp) -> Result<Self>``
        """
        if not isinstance(op, CmpOp):
            raise ArgumentTypeError(f"cmp: got op {described(op)}; takes CmpOp.Eq, Ne, Le, Ge, Lt or Gt")
        compared: A = getattr(self, op.value)(rhs)
        return compared

    def __matmul__(self: A, rhs: Any) -> A:
        if isinstance(rhs, TensorBase):
            node, other = self._node, self._operand(rhs)
            return self._wrap(record(_matmul, (node, other), None, _product(node.meta, other.meta)))
        if isinstance(rhs, (int, float, str, bytes, list, tuple, np.ndarray, np.generic, mx.array)):
            hint = f"; {makes_one(self, rhs)}" if isinstance(rhs, _DATA) else ""
            raise no_tensor("matmul", rhs, f"a tensor{hint}")
        return NotImplemented

    def __rmatmul__(self, lhs: Any) -> Any:
        if isinstance(lhs, _DATA):
            raise no_tensor("matmul", lhs, f"a tensor; {makes_one(self, lhs)}")
        return NotImplemented

    def __neg__(self: A) -> A:
        return self.neg()

    def __abs__(self: A) -> A:
        return self.abs()

    def softmax_stable(self: A) -> A:
        """Softmax over the last dim; metal-candle's ``TensorExt::softmax_stable``."""
        return self.softmax(-1)

    def softmax_fused(self: A) -> A:
        """Softmax over the last dim; metal-candle's ``CustomMetalOps::softmax_fused``."""
        return self.softmax(-1)

"""Records of two tensors compared, element by element."""

from __future__ import annotations

from enum import Enum

import mlx.core as mx
import numpy as np

from ...dtype import DType
from ..operation import Meta
from .binary import Binary


class CmpOp(Enum):
    """Which comparison ``Tensor.cmp`` makes; its value is the method of that comparison. candle: ``CmpOp``."""

    Eq = "eq"
    Ne = "ne"
    Le = "le"
    Ge = "ge"
    Lt = "lt"
    Gt = "gt"


class Comparison(Binary, abstract=True):
    """Family: two tensors of one dtype compared; U8 with 1 for true."""

    differentiable = False
    takes_number = True

    def infer(self, lhs: Meta, rhs: Meta) -> Meta:
        return Meta(super().infer(lhs, rhs).shape, DType.U8)

    def lower(self, lhs: mx.array, rhs: mx.array) -> mx.array:
        return type(self).function(lhs, rhs).astype(mx.uint8)


class Eq(Comparison):
    """1 where the elements are equal."""

    candle = "Tensor::eq<T: TensorOrScalar>(&self, rhs: T) -> Result<Tensor>"
    methods = ("eq",)
    operator = "eq"
    function = mx.equal
    numpy = np.equal


class Ne(Comparison):
    """1 where the elements differ; NaN differs from itself."""

    candle = "Tensor::ne<T: TensorOrScalar>(&self, rhs: T) -> Result<Tensor>"
    methods = ("ne",)
    operator = "ne"
    function = mx.not_equal
    numpy = np.not_equal


class Lt(Comparison):
    """1 where the left element is smaller."""

    candle = "Tensor::lt<T: TensorOrScalar>(&self, rhs: T) -> Result<Tensor>"
    methods = ("lt",)
    operator = "lt"
    function = mx.less
    numpy = np.less


class Le(Comparison):
    """1 where the left element is smaller or equal."""

    candle = "Tensor::le<T: TensorOrScalar>(&self, rhs: T) -> Result<Tensor>"
    methods = ("le",)
    operator = "le"
    function = mx.less_equal
    numpy = np.less_equal


class Gt(Comparison):
    """1 where the left element is larger."""

    candle = "Tensor::gt<T: TensorOrScalar>(&self, rhs: T) -> Result<Tensor>"
    methods = ("gt",)
    operator = "gt"
    function = mx.greater
    numpy = np.greater


class Ge(Comparison):
    """1 where the left element is larger or equal."""

    candle = "Tensor::ge<T: TensorOrScalar>(&self, rhs: T) -> Result<Tensor>"
    methods = ("ge",)
    operator = "ge"
    function = mx.greater_equal
    numpy = np.greater_equal

"""Operations that users bring: what they implement, and the tensor methods that apply them."""

from __future__ import annotations

from typing import Any, TypeVar

import mlx.core as mx

from ..error import Error
from ..graph.node import record
from ..graph.operations.custom import Custom, CustomWithoutBackward
from .base import TensorBase
from .methods import TensorMethods

O = TypeVar("O", bound="CustomOpMethods")  # noqa: E741


class CustomOp:
    """An operation of your own on MLX arrays; a subclass gives ``forward``, and what else it has.

    Any object with these members will do. ``backward(args, res, grad)`` takes and gives MLX arrays, a gradient, or
    ``None`` (zeros), for each argument; without it, ``backward()`` on a tensor raises ``BackwardNotSupportedError``
    where it would be needed.
    ``infer(*metas)`` gives ``(shape, dtype)`` of the result from ``meta.shape`` and ``meta.dtype`` of the
    arguments; without it, ``forward`` is run on arrays of zeros that are never evaluated.

    candle: ``candle_core::CustomOp1``, ``CustomOp2``, ``CustomOp3``.
    """

    def name(self) -> str:
        """What graphs and errors call it."""
        return type(self).__name__

    def forward(self, *args: mx.array) -> mx.array:
        """The result."""
        raise Error(f"{self.name()}: has no forward; a custom operation defines forward(*arrays)")


class CustomOp1(CustomOp):
    """candle's name for one of one argument."""


class CustomOp2(CustomOp):
    """candle's name for one of two arguments."""


class CustomOp3(CustomOp):
    """candle's name for one of three arguments."""


class InplaceOp1(CustomOp):
    """candle's name for one that ``inplace_op1`` takes: ``forward`` gives the new content."""


class InplaceOp2(CustomOp):
    """As ``InplaceOp1``, of this tensor and another."""


class InplaceOp3(CustomOp):
    """As ``InplaceOp1``, of this tensor and two others."""


class CustomOpMethods(TensorMethods):
    """candle's ``apply_op1`` … ``apply_op3``."""

    __slots__ = ()

    def apply_op1(self: O, c: Any) -> O:
        """What a ``CustomOp`` gives for this tensor.

        candle: ``Tensor::apply_op1<C: CustomOp1>(&self, c: C) -> Result<Tensor>``
        """
        return self._custom(Custom(c))

    def apply_op2(self: O, rhs: TensorBase, c: Any) -> O:
        """What a ``CustomOp`` gives for this tensor and another.

        candle: ``Tensor::apply_op2<C: CustomOp2>(&self, rhs: &Self, c: C) -> Result<Tensor>``
        """
        return self._custom(Custom(c), rhs)

    def apply_op3(self: O, t2: TensorBase, t3: TensorBase, c: Any) -> O:
        """What a ``CustomOp`` gives for this tensor and two others.

        candle: ``Tensor::apply_op3<C: CustomOp3>(&self, t2: &Self, t3: &Self, c: C) -> Result<Tensor>``
        """
        return self._custom(Custom(c), t2, t3)

    apply_op1_arc = apply_op1
    apply_op2_arc = apply_op2
    apply_op3_arc = apply_op3

    def apply_op1_no_bwd(self: O, c: Any) -> O:
        """As ``apply_op1``; the result carries no gradient.

        candle: ``Tensor::apply_op1_no_bwd<C: CustomOp1>(&self, c: &C) -> Result<Tensor>``
        """
        return self._custom(CustomWithoutBackward(c))

    def apply_op2_no_bwd(self: O, rhs: TensorBase, c: Any) -> O:
        """As ``apply_op2``; the result carries no gradient.

        candle: ``Tensor::apply_op2_no_bwd<C: CustomOp2>(&self, rhs: &Self, c: &C) -> Result<Tensor>``
        """
        return self._custom(CustomWithoutBackward(c), rhs)

    def apply_op3_no_bwd(self: O, t2: TensorBase, t3: TensorBase, c: Any) -> O:
        """As ``apply_op3``; the result carries no gradient.

        candle: ``Tensor::apply_op3_no_bwd<C: CustomOp3>(&self, t2: &Self, t3: &Self, c: &C) -> Result<Tensor>``
        """
        return self._custom(CustomWithoutBackward(c), t2, t3)

    def _custom(self: O, operation: Custom, *others: TensorBase) -> O:
        return self._wrap(record(operation, (self._node, *[self._operand(other) for other in others])))

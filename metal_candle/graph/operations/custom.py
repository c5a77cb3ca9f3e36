"""Records of operations that users bring; candle's ``CustomOp1``, ``CustomOp2``, ``CustomOp3``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ...dtype import DType
from ...error import BackwardNotSupportedError, Error, ShapeMismatchError
from ...shape import Shape
from ..operation import Gradients, Meta, Operation


class Custom(Operation):
    """An operation that a user's object computes on MLX arrays, and differentiates if it has ``backward``.

    Where ``backward`` gives ``None`` for an argument, that counts as a gradient of zeros: it is known only when the
    gradient is computed, after the ``GradStore`` has its entries.
    """

    arity = None
    candle = "Tensor::apply_op1<C: CustomOp1>(&self, c: C) -> Result<Tensor>"
    lasting = False
    flops_per_element = 0  # unknown: what is known is its traffic
    custom: Any

    def __post_init__(self) -> None:
        got = self.custom
        if isinstance(got, type):
            raise Error(f"apply_op: got the class {got.__name__}; takes an object of it, {got.__name__}()")
        if not callable(getattr(got, "forward", None)):
            raise Error(f"apply_op: got {type(got).__name__}; takes an object with forward(*arrays), see CustomOp")

    def name(self) -> str:
        name = getattr(self.custom, "name", None) or type(self.custom).__name__
        return str(name() if callable(name) else name)

    def describe(self) -> str:
        return self.name()

    def infer(self, *inputs: Meta) -> Meta:
        told = getattr(self.custom, "infer", None)
        if told is not None:
            shape, dtype = told(*inputs)
            return Meta(Shape.of(shape), DType.of(dtype))
        # MLX is lazy: applied to arrays that nobody evaluates, it tells shape and dtype and computes nothing.
        with mx.stream(mx.cpu):
            result = self._checked(self.custom.forward(*[mx.zeros(x.shape, x.dtype.mlx_) for x in inputs]))
        return Meta(Shape(result.shape), DType.of(result.dtype))

    def _checked(self, result: Any) -> mx.array:
        if not isinstance(result, mx.array):
            raise Error(f"{self.name()}: forward gave {type(result).__name__}; takes one mx.array")
        return result.astype(mx.uint8) if result.dtype == mx.bool_ else result

    def lower(self, *inputs: mx.array) -> mx.array:
        return self._checked(self.custom.forward(*inputs))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        backward = getattr(self.custom, "backward", None)
        if backward is None:
            raise BackwardNotSupportedError(self.name())
        found = backward(tuple(inputs), output, cotangent)
        gradients = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        for gradient in gradients:
            if gradient is not None and not isinstance(gradient, mx.array):
                raise Error(
                    f"{self.name()}: backward gave {type(gradient).__name__}; takes an mx.array, or None, per input"
                )
        if len(gradients) != len(inputs):
            raise Error(f"{self.name()}: backward gave {len(gradients)} gradients; takes one, or None, per input")
        for x, gradient in zip(inputs, gradients):
            if gradient is not None and (gradient.shape, gradient.dtype) != (x.shape, x.dtype):
                raise ShapeMismatchError(
                    f"{self.name()}: backward gave a gradient {gradient.shape} {gradient.dtype} for an input "
                    f"{x.shape} {x.dtype}; takes the input's shape and dtype"
                )
        return gradients


class CustomWithoutBackward(Custom):
    """A user's operation whose result carries no gradient, as candle's ``apply_op1_no_bwd``."""

    arity = None
    candle = "Tensor::apply_op1_no_bwd<C: CustomOp1>(&self, c: &C) -> Result<Tensor>"
    differentiable = False

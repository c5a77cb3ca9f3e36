"""Records of two tensors, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from ...error import DTypeMismatchError, ShapeMismatchBinaryOpError, UnsupportedDTypeForOpError
from ...kernels.accurate_sum import total
from ...shape import broadcast_shapes
from ..operation import Gradients, Meta, Operation, Sample

PAIRS = (
    Sample(((), ())),
    Sample(((0,), (0,))),
    Sample(((5, 123), (5, 123))),
    Sample(((5, 1, 3), (4, 3))),
    Sample(((2, 3), ())),
)
POSITIVE_PAIRS = tuple(Sample(sample.shapes, low=0.5, high=3.0) for sample in PAIRS)


def reduce_to(gradient: mx.array, like: mx.array) -> mx.array:
    """Sum a gradient over the dimensions that broadcasting added to ``like``."""
    if gradient.shape == like.shape:
        return gradient
    extra = gradient.ndim - like.ndim
    axes = [i for i in range(gradient.ndim) if i < extra or like.shape[i - extra] != gradient.shape[i]]
    return total(gradient, axes).reshape(like.shape)


class Binary(Operation, abstract=True):
    """Family: two tensors of one dtype, whose shapes broadcast.

    Offered as a named method that wants equal shapes, as ``broadcast_<name>``, and as an operator.
    """

    arity = 2
    samples: ClassVar[tuple[Sample, ...]] = PAIRS
    function: ClassVar[Callable[..., mx.array]]
    operator: ClassVar[str] = ""
    # Whether the method for equal shapes also takes a number, as candle's TensorOrScalar; operators always do.
    takes_number: ClassVar[bool] = False

    def __init_subclass__(cls, abstract: bool = False) -> None:
        super().__init_subclass__(abstract)
        if not abstract and cls.lower is Binary.lower:
            cls.lower = staticmethod(cls.function)  # type: ignore[method-assign]  # a Python call less

    @classmethod
    def bind_strict(cls, lhs: Meta, rhs: Meta) -> Operation:
        """candle's named method: equal shapes only. Raises ``ShapeMismatchBinaryOpError``."""
        if lhs.shape != rhs.shape:
            takes = f"equal shapes; broadcast_{cls.key} broadcasts"
            raise ShapeMismatchBinaryOpError(cls.key, lhs.shape, rhs.shape, takes)
        return cls()

    @classmethod
    def bind(cls, lhs: Meta, rhs: Meta) -> Operation:
        return cls()

    @classmethod
    def surface(cls) -> dict[str, Callable[..., Operation]]:
        return {cls.methods[0]: cls.bind_strict, f"broadcast_{cls.methods[0]}": cls.bind}

    def infer(self, lhs: Meta, rhs: Meta) -> Meta:
        if lhs.dtype is not rhs.dtype:
            raise DTypeMismatchError(self.key, lhs.dtype, rhs.dtype)
        if lhs.shape == rhs.shape:
            return lhs
        return Meta(broadcast_shapes(lhs.shape, rhs.shape, self.key), lhs.dtype)

    def lower(self, lhs: mx.array, rhs: mx.array) -> mx.array:
        return type(self).function(lhs, rhs)


class Add(Binary):
    """Sum of two tensors."""

    candle = "Tensor::add(&self, rhs: &Tensor) -> Result<Tensor>"
    methods = ("add",)
    operator = "add"
    function = mx.add
    numpy = np.add

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return tuple(reduce_to(cotangent, x) if need else None for x, need in zip(inputs, needs))


class Sub(Binary):
    """Difference of two tensors."""

    candle = "Tensor::sub(&self, rhs: &Tensor) -> Result<Tensor>"
    methods = ("sub",)
    operator = "sub"
    function = mx.subtract
    numpy = np.subtract

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        lhs = reduce_to(cotangent, inputs[0]) if needs[0] else None
        return lhs, reduce_to(-cotangent, inputs[1]) if needs[1] else None


class Mul(Binary):
    """Product of two tensors, element by element."""

    candle = "Tensor::mul(&self, rhs: &Tensor) -> Result<Tensor>"
    methods = ("mul",)
    operator = "mul"
    function = mx.multiply
    numpy = np.multiply

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        lhs, rhs = inputs
        left = reduce_to(cotangent * rhs, lhs) if needs[0] else None
        return left, reduce_to(cotangent * lhs, rhs) if needs[1] else None


class Div(Binary):
    """Quotient of two tensors; integers truncate toward zero, and give 0 where the divisor is 0 (candle panics)."""

    candle = "Tensor::div(&self, rhs: &Tensor) -> Result<Tensor>"
    methods = ("div",)
    operator = "truediv"
    samples = POSITIVE_PAIRS
    numpy = np.divide

    @staticmethod
    def function(lhs: mx.array, rhs: mx.array) -> mx.array:
        if mx.issubdtype(lhs.dtype, mx.floating):
            return mx.divide(lhs, rhs)
        return _truncating_quotient(lhs, rhs)


def _truncating_quotient(lhs: mx.array, rhs: mx.array) -> mx.array:
    if lhs.dtype in (mx.uint8, mx.uint32):
        return mx.where(rhs == 0, mx.array(0, lhs.dtype), mx.floor_divide(lhs, mx.maximum(rhs, 1)))
    # The processor traps on a divisor of 0 and on the smallest integer by -1.
    by = mx.where((rhs == 0) | (rhs == -1), mx.array(1, rhs.dtype), rhs)
    floor = mx.floor_divide(lhs, by)
    rounded_down = (lhs - floor * by != 0) & ((lhs < 0) != (by < 0))
    quotient = floor + rounded_down.astype(floor.dtype)
    return mx.where(rhs == 0, mx.array(0, lhs.dtype), mx.where(rhs == -1, -quotient, quotient))


class Pow(Binary):
    """The left element to the power of the right one; integers raise ``UnsupportedDTypeForOpError``.

    Negative bases have their integer powers and x⁰ is 1, also at 0; candle's exp(rhs · log(self)) gives NaN there.
    The gradient of the exponent is 0 where the base is 0 and the power is not a pole.
    """

    candle = "Tensor::pow(&self, rhs: &Tensor) -> Result<Tensor>"
    methods = ("pow",)
    operator = "pow"
    samples = POSITIVE_PAIRS
    function = mx.power
    numpy = np.power
    work = "exponential"

    def infer(self, lhs: Meta, rhs: Meta) -> Meta:
        if not lhs.dtype.is_float_:
            raise UnsupportedDTypeForOpError(self.key, lhs.dtype, "bf16, f16, f32 or f64")
        return super().infer(lhs, rhs)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        lhs, rhs = inputs
        left = right = None
        zero = mx.array(0, cotangent.dtype)
        if needs[0]:
            left = reduce_to(mx.where(rhs == 0, zero, cotangent * rhs * mx.power(lhs, rhs - 1)), lhs)
        if needs[1]:
            right = reduce_to(mx.where((lhs == 0) & (rhs >= 0), zero, cotangent * output * mx.log(lhs)), rhs)
        return left, right


class Maximum(Binary):
    """Larger of two elements, NaN if either is; a tie gives each side half of the gradient, as in candle.

    candle keeps NaN on one side only: the left on its CPU back-end, the right on Metal.
    """

    candle = "Tensor::maximum<T: TensorOrScalar>(&self, rhs: T) -> Result<Tensor>"
    methods = ("maximum",)
    takes_number = True
    function = mx.maximum
    numpy = np.maximum

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return _split_at_ties(cotangent, inputs, needs, inputs[0] > inputs[1], inputs[0] < inputs[1])


class Minimum(Binary):
    """Smaller of two elements, NaN if either is; a tie gives each side half of the gradient, as in candle.

    candle keeps NaN on one side only: the left on its CPU back-end, the right on Metal.
    """

    candle = "Tensor::minimum<T: TensorOrScalar>(&self, rhs: T) -> Result<Tensor>"
    methods = ("minimum",)
    takes_number = True
    function = mx.minimum
    numpy = np.minimum

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return _split_at_ties(cotangent, inputs, needs, inputs[0] < inputs[1], inputs[0] > inputs[1])


def _split_at_ties(
    cotangent: mx.array, inputs: Sequence[Any], needs: Sequence[bool], left: mx.array, right: mx.array
) -> Gradients:
    share = (left.astype(cotangent.dtype) - right.astype(cotangent.dtype) + 1) * 0.5
    of_left = reduce_to(cotangent * share, inputs[0]) if needs[0] else None
    return of_left, reduce_to(cotangent * (1 - share), inputs[1]) if needs[1] else None

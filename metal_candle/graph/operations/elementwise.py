"""Families of records of one tensor, element by element; what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import mlx.core as mx

from ...error import UnsupportedDTypeForOpError
from ...kernels.variant import is_half
from ..operation import Meta, Operation, Sample

ANY_SHAPE = (Sample(((),)), Sample(((0,),)), Sample(((1,),)), Sample(((5, 123),)), Sample(((2, 3, 4),)))
POSITIVE = tuple(Sample(sample.shapes, low=0.1, high=3.0) for sample in ANY_SHAPE)
FLOATS = (mx.float32, mx.float16, mx.bfloat16, mx.float64)


class UnaryFloat(Operation, abstract=True):
    """Family: one float tensor in, the same shape and dtype out.

    Integers raise ``UnsupportedDTypeForOpError`` (in candle most of these panic, the others give 0).
    """

    samples: ClassVar[tuple[Sample, ...]] = ANY_SHAPE
    function: ClassVar[Callable[..., mx.array]]

    def __init_subclass__(cls, abstract: bool = False) -> None:
        super().__init_subclass__(abstract)
        if not abstract and cls.lower is UnaryFloat.lower:
            cls.lower = staticmethod(cls.function)  # type: ignore[method-assign]  # a Python call less

    def infer(self, x: Meta) -> Meta:
        if not x.dtype.is_float_:
            raise UnsupportedDTypeForOpError(self.key, x.dtype, "bf16, f16, f32 or f64")
        return x

    def lower(self, x: mx.array) -> mx.array:
        return type(self).function(x)


class UnaryAny(UnaryFloat, abstract=True):
    """Family: one tensor of any dtype in, the same shape and dtype out."""

    def infer(self, x: Meta) -> Meta:
        return x


def in_float32(function: Callable[..., mx.array], x: mx.array) -> mx.array:
    """``function(x)``, for halves computed in float32 and rounded once."""
    return function(x.astype(mx.float32)).astype(x.dtype) if is_half(x) else function(x)


def scalar(value: float, dtype: mx.Dtype) -> mx.array:
    """A number as a scalar of a dtype by the rules of Rust's ``as``.

    Into an integer it truncates toward zero, saturates at the ends of the range, and NaN gives 0.
    """
    if dtype in FLOATS:
        return mx.array(value, dtype)
    info = mx.iinfo(dtype)
    return mx.array(int(min(max(value, info.min), info.max)) if value == value else 0, dtype)

"""Records that round, and the sign: no gradient passes through them, as in candle."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ...error import Error
from ..operation import Meta, Operation, Sample
from .elementwise import ANY_SHAPE, UnaryAny, UnaryFloat, in_float32


def half_away_from_zero(x: mx.array) -> mx.array:
    """The nearest integer of float elements, halves away from zero; -0, infinities and NaN stay what they are."""
    size = mx.abs(x)
    down = mx.floor(size)
    # The difference is exact; that of infinity with itself is NaN, which is not above a half.
    nearest = mx.where(size - down >= 0.5, down + 1, down)
    return mx.where(x < 0, -nearest, mx.where(x == 0, x, nearest))


def _half_away_from_zero(x: Any) -> Any:
    """The same for NumPy's float64."""
    return np.copysign(np.floor(np.abs(x)) + (np.abs(x) - np.floor(np.abs(x)) >= 0.5), x)


class Rounding(UnaryAny, abstract=True):
    """Family: to an integer of the same dtype; integers are left as they are."""

    differentiable = False

    def lower(self, x: mx.array) -> mx.array:
        return super().lower(x) if mx.issubdtype(x.dtype, mx.floating) else x


class Ceil(Rounding):
    """The smallest integer that is not below each element."""

    candle = "Tensor::ceil(&self) -> Result<Tensor>"
    methods = ("ceil",)
    function = mx.ceil
    numpy = np.ceil


class Floor(Rounding):
    """The largest integer that is not above each element."""

    candle = "Tensor::floor(&self) -> Result<Tensor>"
    methods = ("floor",)
    function = mx.floor
    numpy = np.floor


class Round(Rounding):
    """The nearest integer, halves away from zero: 0.5 gives 1 and -2.5 gives -3."""

    candle = "Tensor::round(&self) -> Result<Tensor>"
    methods = ("round",)
    function = half_away_from_zero
    numpy = _half_away_from_zero
    work = "elementary"


class RoundTo(UnaryFloat):
    """Rounded to that many decimals, halves away from zero; negative ones round to tens, hundreds …

    It is ``round(x · 10^decimals) · 10^-decimals``, halves computed in float32. Integers raise
    ``UnsupportedDTypeForOpError`` (candle casts the powers to integers, which gives 0).
    """

    candle = "Tensor::round_to(&self, decimals: i32) -> Result<Tensor>"
    methods = ("round_to",)
    differentiable = False
    samples = (
        *(Sample(sample.shapes, (2,)) for sample in ANY_SHAPE),
        Sample(((5, 123),), (0,)),
        Sample(((5, 123),), (-1,), -300.0, 300.0),
    )
    work = "elementary"
    flops_per_element = 3
    decimals: int

    @classmethod
    def bind(cls, x: Meta, decimals: int) -> Operation:
        if not isinstance(decimals, (int, np.integer)) or not -300 <= decimals <= 300:
            raise Error(f"round_to: got decimals {decimals!r}; takes an integer from -300 to 300")
        return cls(int(decimals))

    def lower(self, x: mx.array) -> mx.array:
        up, down = 10.0**self.decimals, 10.0**-self.decimals
        return in_float32(lambda wide: half_away_from_zero(wide * up) * down, x)

    @staticmethod
    def numpy(x: Any, decimals: int) -> Any:
        return _half_away_from_zero(x * 10.0**decimals) * 10.0**-decimals


class Sign(UnaryAny):
    """-1, 0 or 1; 0 for NaN and for both zeros."""

    candle = "Tensor::sign(&self) -> Result<Tensor>"
    methods = ("sign",)
    differentiable = False
    function = mx.sign
    numpy = np.sign

"""One number with a dtype; candle's ``candle_core::scalar::Scalar``."""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx
import numpy as np

from .dtype import DType, DTypeLike
from .error import Error


@dataclass(frozen=True, init=False)
class Scalar:
    """A number as a dtype holds it: ``Scalar(0.1, "f16").to_f64()`` is 0.0999755859375.

    Without a dtype an integer is I64, a float F32, a boolean U8, and a NumPy number keeps its own. Two are equal
    if value and dtype are. Raises ``Error`` for an integer that does not fit, for a float beside an integer
    dtype unless it is whole, and for what is no number; ``DTypeParseError`` for a dtype candle lacks.
    """

    value: int | float
    _dtype: DType

    def __init__(self, value: Any, dtype: DTypeLike | None = None) -> None:
        kind = _natural(value) if dtype is None else DType.of(dtype)
        object.__setattr__(self, "value", _integer(value, kind) if kind.is_int() else _float(value, kind))
        object.__setattr__(self, "_dtype", kind)

    @staticmethod
    def zero(dtype: DTypeLike) -> Scalar:
        """0 of this dtype."""
        return Scalar(0, dtype)

    @staticmethod
    def one(dtype: DTypeLike) -> Scalar:
        """1 of this dtype."""
        return Scalar(1, dtype)

    def dtype(self) -> DType:
        """Its dtype."""
        return self._dtype

    def to_f64(self) -> float:
        """Its value as a Python float; an I64 beyond 2^53 is rounded."""
        return float(self.value)

    def __float__(self) -> float:
        return self.to_f64()

    def __int__(self) -> int:
        return int(self.value)

    def __repr__(self) -> str:
        return f"Scalar({self.value}, {self._dtype})"


def _natural(value: Any) -> DType:
    if isinstance(value, np.generic):
        return DType.of(value.dtype)
    if isinstance(value, bool):
        return DType.U8
    if isinstance(value, int):
        return DType.I64
    if isinstance(value, float):
        return DType.F32
    raise Error(f"Scalar: got {value!r}; takes a number")


def _integer(value: Any, dtype: DType) -> int:
    info = mx.iinfo(dtype.mlx_)
    try:
        whole = int(value) if isinstance(value, (float, np.floating, np.bool_)) else operator.index(value)
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or whole != value or not info.min <= whole <= info.max:
        raise Error(f"Scalar: got {value!r} for {dtype}; takes an integer from {info.min} to {info.max}")
    return whole


def _float(value: Any, dtype: DType) -> float:
    if not isinstance(value, (int, float, np.number, np.bool_)) or isinstance(value, np.complexfloating):
        raise Error(f"Scalar: got {value!r} for {dtype}; takes a number")
    try:
        wide = float(value)
    except OverflowError:
        raise Error(f"Scalar: got {value!r} for {dtype}; takes what a float holds") from None
    if dtype is DType.F64:
        return wide
    if dtype is DType.BF16:
        return float(mx.array(wide, mx.bfloat16))
    with np.errstate(over="ignore"):  # too large is infinite, as in a tensor
        return float(np.float16(wide) if dtype is DType.F16 else np.float32(wide))


def hold_python_numbers(config: Any) -> None:
    """Let a dataclass that is being made hold Python's numbers in the place of NumPy's and MLX's.

    Those of NumPy would make NumPy's arrays of MLX's that they are computed with, and no JSON holds either.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, (np.generic, np.ndarray, mx.array)) and value.ndim == 0:
            object.__setattr__(config, field.name, value.item())

"""Element types, with candle's names: ``DType.F32``, ``DType.U8`` …"""

from __future__ import annotations

from enum import Enum
from typing import Any, Union

import mlx.core as mx

from .error import DTypeParseError


class DType(Enum):
    """An element type. ``F64`` exists on the CPU only. MLX's booleans surface as ``U8`` 0/1."""

    U8 = "u8"
    I16 = "i16"
    U32 = "u32"
    I32 = "i32"
    I64 = "i64"
    BF16 = "bf16"
    F16 = "f16"
    F32 = "f32"
    F64 = "f64"

    # Plain attributes, not properties: dtype checks run for every recorded node.
    is_float_: bool
    mlx_: mx.Dtype
    size_: int

    # Members are compared by identity; Enum's own hash is a Python call, and dtypes are part of many keys.
    __hash__ = object.__hash__

    @classmethod
    def of(cls, value: DTypeLike) -> DType:
        """A ``DType``, its name ("f32"), an ``mx.Dtype`` or a NumPy dtype. Raises ``DTypeParseError``.

        Booleans are U8. 8- and 16-bit types that candle lacks (i8, u16) and u64, complex numbers are refused.
        """
        if isinstance(value, cls):
            return value
        try:
            return _BY_MLX[value] if isinstance(value, mx.Dtype) else cls(value)
        except (KeyError, ValueError):
            pass
        name = str(getattr(value, "name", getattr(value, "__name__", value)))
        if name not in _BY_NUMPY_NAME:
            raise DTypeParseError(value)
        return _BY_NUMPY_NAME[name]

    @classmethod
    def from_str(cls, name: str) -> DType:
        """The dtype that candle calls ``name``: "u8", "f32" … Raises ``DTypeParseError``, which quotes it."""
        try:
            return cls(name)
        except ValueError:
            raise DTypeParseError(name) from None

    def as_str(self) -> str:
        """candle's name: "f32"."""
        return str(self.value)

    def size_in_bytes(self) -> int:
        """Bytes of one element."""
        return self.size_

    def is_float(self) -> bool:
        """Whether it is a floating-point type."""
        return self.is_float_

    def is_int(self) -> bool:
        """Whether it is an integer type."""
        return not self.is_float_

    def mlx(self) -> mx.Dtype:
        """MLX's dtype."""
        return self.mlx_

    def __str__(self) -> str:
        return str(self.value)


DTypeLike = Union[DType, str, mx.Dtype, Any]

_MLX = {
    DType.U8: mx.uint8,
    DType.I16: mx.int16,
    DType.U32: mx.uint32,
    DType.I32: mx.int32,
    DType.I64: mx.int64,
    DType.BF16: mx.bfloat16,
    DType.F16: mx.float16,
    DType.F32: mx.float32,
    DType.F64: mx.float64,
}
for _dtype, _mlx in _MLX.items():
    _dtype.mlx_ = _mlx
    _dtype.size_ = _mlx.size
    _dtype.is_float_ = _dtype in (DType.BF16, DType.F16, DType.F32, DType.F64)
_BY_MLX = {mlx: dtype for dtype, mlx in _MLX.items()} | {mx.bool_: DType.U8}
_BY_NUMPY_NAME = {str(mlx).rpartition(".")[2]: dtype for dtype, mlx in _MLX.items()} | {"bool": DType.U8}

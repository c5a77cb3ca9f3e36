"""What Python and its libraries expect of a tensor: numbers, sequences, copies, pickles, NumPy and DLPack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from ..device import Device, DeviceType
from ..dtype import DType
from ..error import UnexpectedDTypeError, UnexpectedNumberOfDimsError
from ..formats.raw import from_bytes, to_bytes
from .base import TensorBase

Y = TypeVar("Y", bound="PythonProtocols")


class PythonProtocols(TensorBase):
    """Python's own methods. All but ``len``, iteration, ``copy`` and ``hash`` compute the value."""

    __slots__ = ()

    @classmethod
    def _from_array(cls: type[Y], array: mx.array, device: Device | None) -> Y:
        raise AssertionError("a tensor class defines _from_array")

    # --- numbers ------------------------------------------------------------------------------

    def _one(self) -> Any:
        if self.elem_count() != 1:
            raise UnexpectedNumberOfDimsError("a Python number", "0, or one element", self.shape)
        return self.mlx().reshape(()).item()

    def __float__(self) -> float:
        return float(self._one())

    def __int__(self) -> int:
        return int(self._one())

    def __bool__(self) -> bool:
        return bool(self._one())

    def __index__(self) -> int:
        if self.dtype.is_float():
            raise UnexpectedDTypeError("index", "an integer dtype", self.dtype)
        return int(self._one())

    def __format__(self, spec: str) -> str:
        return format(self._one(), spec) if spec else str(self)

    # --- sequences ----------------------------------------------------------------------------

    def __len__(self) -> int:
        if not self.shape:
            raise UnexpectedNumberOfDimsError("len", "1 or more", self.shape)
        return self.shape[0]

    def __iter__(self: Y) -> Iterator[Y]:
        for i in range(len(self)):
            yield self[i]  # type: ignore[index]

    def __hash__(self) -> int:
        return id(self)

    # --- copies -------------------------------------------------------------------------------

    def __copy__(self: Y) -> Y:
        """candle's ``clone``: the same tensor, with the same storage."""
        return self

    def __deepcopy__(self: Y, memo: dict[int, Any]) -> Y:
        """The same values in storage of their own; a gradient goes through the copy as through the tensor."""
        if self.track_op() and not self.is_variable():
            copied: Y = self.copy()  # type: ignore[attr-defined]
        else:
            copied = type(self)._from_array(mx.array(self.mlx()), self.device)
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), pack(self.mlx()), (self.device.kind.value, self.device.index))

    # --- other libraries ----------------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"__array__: {self.dtype} as {np.dtype(dtype)} takes a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack__(self, *, copy: bool | None = None, **options: Any) -> Any:
        """The value as DLPack. Who takes it may write into it, so it is a copy, unless ``copy=False`` asks for none."""
        array = self.mlx() if copy is False else mx.array(self.mlx())
        mx.eval(array)
        mx.synchronize()
        return array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's numbers of the device."""
        kind, index = self.mlx().__dlpack_device__()
        return int(kind), int(index)


Packed = tuple[str, tuple[int, ...], bytes]


def pack(array: mx.array) -> Packed:
    """An array as plain values that every version of everything can unpickle: dtype, shape, row-major bytes."""
    return DType.of(array.dtype).as_str(), tuple(array.shape), bytes(to_bytes(array))


def unpack(packed: Packed) -> mx.array:
    """What ``pack`` was given."""
    name, shape, data = packed
    return from_bytes(data, DType.of(name).mlx_, shape)


def present(device: tuple[str, int]) -> Device:
    """The device a pickle names, or the default one where that is not there."""
    kind, index = DeviceType(device[0]), device[1]
    here = Device.Cpu if kind is DeviceType.Cpu else Device.new_with_fallback(index)
    return here if here.kind is kind else Device.default()


def _rebuild(kind: Any, packed: Packed, device: tuple[str, int]) -> Any:
    return kind._from_array(unpack(packed), present(device))

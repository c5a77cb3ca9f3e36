"""The tensor methods that are spelled out by hand, together."""

from __future__ import annotations

from typing import Any, TypeVar

from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import DeviceError, DTypeParseError, Error
from ..graph.node import record
from ..graph.operations.structure import ToDevice
from .arithmetic import ArithmeticMethods
from .base import TensorBase
from .custom_op import CustomOpMethods
from .files import FileMethods
from .shaping import ShapingMethods

T = TypeVar("T", bound="WrittenMethods")


class WrittenMethods(ArithmeticMethods, CustomOpMethods, FileMethods, ShapingMethods):
    """Methods spelled out by hand."""

    __slots__ = ()

    def to(
        self: T,
        *to: TensorBase | DTypeLike | DeviceLike,
        device: DeviceLike = None,
        dtype: DTypeLike | None = None,
    ) -> T:
        """The same values with a dtype, on a device, or with both of another tensor, by position or by keyword.

        Raises ``Error`` for what names neither, and for two of one kind; else as ``to_dtype`` and ``to_device``.

        candle: its Python binding's ``Tensor.to``
        """
        for target in to:
            if isinstance(target, TensorBase):
                found: dict[str, Any] = {"device": target.device, "dtype": target.dtype}
            else:
                found = _named(target)
            if (device is not None and "device" in found) or (dtype is not None and "dtype" in found):
                raise Error(f"to: got {target!r} beside another of its kind; takes one device and one dtype")
            device, dtype = found.get("device", device), found.get("dtype", dtype)
        moved = self if device is None else self.to_device(device)
        return moved if dtype is None else moved.to_dtype(dtype)

    def detach(self: T) -> T:
        """A view without the gradient; the tensor itself where there is none. candle: ``Tensor::detach``"""
        return super().detach() if self.track_op() else self

    def contiguous(self: T) -> T:
        """The same values row-major; the tensor itself where they are so already. candle: ``Tensor::contiguous``"""
        return self if self.is_contiguous() else super().contiguous()

    def to_device(self: T, device: DeviceLike) -> T:
        """The same values on another device. Raises ``UnsupportedDTypeForOpError`` for F64 off the CPU.

        candle: ``Tensor::to_device(&self, device: &Device) -> Result<Tensor>``
        """
        target = Device.of(device)
        return self if target == self.device else self._wrap(record(ToDevice(target), (self._node,), target))


def _named(target: Any) -> dict[str, Any]:
    """A dtype or a device, by what it is."""
    try:
        return {"dtype": DType.of(target)}
    except DTypeParseError:
        pass
    try:
        return {"device": Device.of(target)}
    except DeviceError:
        raise  # a device, but not one that is here
    except Error:
        raise Error(f"to: got {target!r}; takes a dtype, a device or a tensor") from None

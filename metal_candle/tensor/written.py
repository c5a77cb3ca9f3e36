"""The tensor methods that are spelled out by hand, together."""

from __future__ import annotations

from typing import TypeVar

from ..device import Device, DeviceLike
from ..graph.node import record
from ..graph.operations.structure import ToDevice
from .arithmetic import ArithmeticMethods
from .custom_op import CustomOpMethods
from .files import FileMethods
from .shaping import ShapingMethods

T = TypeVar("T", bound="WrittenMethods")


class WrittenMethods(ArithmeticMethods, CustomOpMethods, FileMethods, ShapingMethods):
    """Methods spelled out by hand."""

    __slots__ = ()

    def to_device(self: T, device: DeviceLike) -> T:
        """The same values on another device. Raises ``UnsupportedDTypeForOpError`` for F64 off the CPU.

        candle: ``Tensor::to_device(&self, device: &Device) -> Result<Tensor>``
        """
        target = Device.of(device)
        return self if target == self.device else self._wrap(record(ToDevice(target), (self._node,), target))

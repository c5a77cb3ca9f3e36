"""Devices, with candle's and metal-candle's constructors: ``Device.Cpu``, ``Device.new_metal(0)`` …"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Union

import mlx.core as mx

from .error import DeviceError, Error


class DeviceType(Enum):
    """The kind of a device."""

    Cpu = "cpu"
    Metal = "metal"
    Cuda = "cuda"


@dataclass(frozen=True)
class DeviceInfo:
    """What ``Device.info()`` tells."""

    device_type: DeviceType
    index: int
    metal_available: bool


@dataclass(frozen=True)
class Device:
    """Where a tensor is computed. Memory is MLX's: unified on Apple silicon, the GPU's with CUDA."""

    kind: DeviceType
    index: int = 0

    Cpu: ClassVar[Device]

    @staticmethod
    def new_cpu() -> Device:
        """The CPU."""
        return Device.Cpu

    @staticmethod
    def new_metal(index: int) -> Device:
        """Apple's GPU. Raises ``DeviceError.MetalUnavailable`` where there is none."""
        if not mx.metal.is_available():
            raise DeviceError.MetalUnavailable(reason="MLX has no Metal back-end here; use Device.Cpu")
        return Device(DeviceType.Metal, index)

    @staticmethod
    def new_cuda(index: int) -> Device:
        """An NVIDIA GPU. Raises ``DeviceError.CudaUnavailable`` where there is none."""
        if not mx.cuda.is_available():
            raise DeviceError.CudaUnavailable(reason='MLX has no CUDA back-end here; pip install "metal-candle[cuda]"')
        return Device(DeviceType.Cuda, index)

    @staticmethod
    def metal_if_available(index: int) -> Device:
        """Metal if MLX has it here, else the CPU."""
        return Device(DeviceType.Metal, index) if mx.metal.is_available() else Device.Cpu

    @staticmethod
    def cuda_if_available(index: int) -> Device:
        """CUDA if MLX has it here, else the CPU."""
        return Device(DeviceType.Cuda, index) if mx.cuda.is_available() else Device.Cpu

    @staticmethod
    def new_with_fallback(index: int) -> Device:
        """The best device there is: Metal, CUDA or the CPU. Never fails."""
        metal = Device.metal_if_available(index)
        return metal if metal.is_metal() else Device.cuda_if_available(index)

    @staticmethod
    def default() -> Device:
        """The device used where none is given: MLX's default device."""
        return Device.Cpu if mx.default_device() == mx.cpu else Device.new_with_fallback(0)

    @staticmethod
    def is_metal_available() -> bool:
        """Whether MLX can use Metal here."""
        return bool(mx.metal.is_available())

    def is_cpu(self) -> bool:
        """Whether it is the CPU."""
        return self.kind is DeviceType.Cpu

    def is_metal(self) -> bool:
        """Whether it is Apple's GPU."""
        return self.kind is DeviceType.Metal

    def is_cuda(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.kind is DeviceType.Cuda

    def info(self) -> DeviceInfo:
        """Kind, index and whether Metal is available."""
        return DeviceInfo(self.kind, self.index, Device.is_metal_available())

    def same_device(self, other: Device) -> bool:
        """Whether both are the same device."""
        return self == other

    def set_seed(self, seed: int) -> None:
        """Seed MLX's random generator, which all devices share."""
        if not 0 <= seed < 2**64:
            raise Error(f"set_seed: got {seed}; takes 0 to 2^64 - 1")
        mx.random.seed(seed)

    def synchronize(self) -> None:
        """Wait until the device's work is done."""
        mx.synchronize(self.mlx())

    def mlx(self) -> mx.Device:
        """MLX's device."""
        return mx.Device(mx.cpu if self.is_cpu() else mx.gpu, self.index)

    def __repr__(self) -> str:
        return "Device.Cpu" if self.is_cpu() else f"Device.{self.kind.name}({self.index})"


Device.Cpu = Device(DeviceType.Cpu)
DeviceLike = Union[Device, None]

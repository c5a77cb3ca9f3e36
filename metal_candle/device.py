"""Devices, with candle's and metal-candle's constructors: ``Device.Cpu``, ``Device.new_metal(0)`` …"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import ClassVar, TypeVar, Union

import mlx.core as mx

from .dtype import DType
from .error import DeviceError, Error

R = TypeVar("R")


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
class DeviceLocation:
    """A physical device: ``DeviceLocation.Cpu``, ``.Metal(gpu_id)`` or ``.Cuda(gpu_id)``.

    candle: ``candle_core::DeviceLocation``.
    """

    kind: DeviceType
    gpu_id: int | None = None

    Cpu: ClassVar[DeviceLocation]

    @staticmethod
    def Metal(gpu_id: int) -> DeviceLocation:
        """Apple's GPU of this number."""
        return DeviceLocation(DeviceType.Metal, gpu_id)

    @staticmethod
    def Cuda(gpu_id: int) -> DeviceLocation:
        """The NVIDIA GPU of this number."""
        return DeviceLocation(DeviceType.Cuda, gpu_id)

    def __str__(self) -> str:
        return self.kind.value if self.gpu_id is None else f"{self.kind.value}:{self.gpu_id}"

    def __repr__(self) -> str:
        return f"DeviceLocation.{self.kind.name}" + ("" if self.gpu_id is None else f"({self.gpu_id})")


DeviceLocation.Cpu = DeviceLocation(DeviceType.Cpu)


class _Seed(threading.local):
    # MLX has one random generator per thread, so the last seed is a thread's too.
    last: int | None = None


_seed = _Seed()


@dataclass(frozen=True)
class Device:
    """Where a tensor is computed. Memory is MLX's: unified on Apple silicon, the GPU's with CUDA.

    Wherever a device is taken, its name is too: "cpu", "metal", "cuda", "cuda:1".
    """

    kind: DeviceType
    index: int = 0

    Cpu: ClassVar[Device]

    def __post_init__(self) -> None:
        if not isinstance(self.kind, DeviceType):
            raise Error(f"Device: got {self.kind!r} for a kind; takes a DeviceType, Device.of reads names")

    @staticmethod
    def of(device: DeviceLike) -> Device:
        """A ``Device``, its name ("cpu", "metal", "cuda:1"), an ``mx.Device``, or ``None`` for the default one.

        Raises ``DeviceError`` where there is no such device, ``Error`` for what names none.
        """
        if isinstance(device, Device):
            return device
        if device is None:
            return Device.default()
        if isinstance(device, str):
            return _named(device)
        if isinstance(device, (mx.Device, mx.DeviceType)):
            if device == mx.cpu:
                return Device.Cpu
            return Device.new_metal(0) if Device.is_metal_available() else Device.new_cuda(0)
        raise Error(f"device: got {device!r}; {_NAMES}")

    @staticmethod
    def new_cpu() -> Device:
        """The CPU."""
        return Device.Cpu

    @staticmethod
    def new_metal(index: int) -> Device:
        """Apple's GPU. Raises ``DeviceError.MetalUnavailable`` where there is none of that index."""
        if not mx.metal.is_available():
            raise DeviceError.MetalUnavailable(reason="MLX has no Metal back-end here; use Device.Cpu")
        if _missing(index):
            raise DeviceError.MetalUnavailable(reason=_missing(index))
        return Device(DeviceType.Metal, index)

    @staticmethod
    def new_cuda(index: int) -> Device:
        """An NVIDIA GPU. Raises ``DeviceError.CudaUnavailable`` where there is none of that index."""
        if not mx.cuda.is_available():
            raise DeviceError.CudaUnavailable(reason='MLX has no CUDA back-end here; pip install "metal-candle[cuda]"')
        if _missing(index):
            raise DeviceError.CudaUnavailable(reason=_missing(index))
        return Device(DeviceType.Cuda, index)

    @staticmethod
    def new_cuda_with_stream(index: int) -> Device:
        """The same as ``new_cuda``: MLX gives each thread streams of its own. Raises as it does."""
        return Device.new_cuda(index)

    @staticmethod
    def metal_if_available(index: int) -> Device:
        """Metal if MLX has it here, else the CPU; asked when it is called, not when the package was built."""
        return Device.new_metal(index) if mx.metal.is_available() else Device.Cpu

    @staticmethod
    def cuda_if_available(index: int) -> Device:
        """CUDA if MLX has it here, else the CPU; asked when it is called, not when the package was built."""
        return Device.new_cuda(index) if mx.cuda.is_available() else Device.Cpu

    @staticmethod
    def new_with_fallback(index: int) -> Device:
        """The best device there is: Metal, CUDA or, also where no GPU has that index, the CPU. Never fails."""
        if _missing(index):
            return Device.Cpu
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

    def location(self) -> DeviceLocation:
        """The physical device it is on."""
        return DeviceLocation.Cpu if self.is_cpu() else DeviceLocation(self.kind, self.index)

    def as_metal_device(self) -> Device:
        """Itself, if it is Apple's GPU. Raises ``Error`` if it is not."""
        if not self.is_metal():
            raise Error(f"as_metal_device: got {self}; takes a Metal device")
        return self

    def as_cuda_device(self) -> Device:
        """Itself, if it is an NVIDIA GPU. Raises ``Error`` if it is not."""
        if not self.is_cuda():
            raise Error(f"as_cuda_device: got {self}; takes a CUDA device")
        return self

    def same_device(self, rhs: Device) -> bool:
        """Whether both are the same device."""
        return self == rhs

    def supports_bf16(self) -> bool:
        """candle's answer: on a GPU, not on the CPU. MLX computes BF16 on every device."""
        return not self.is_cpu()

    def bf16_default_to_f32(self) -> DType:
        """BF16 where ``supports_bf16()``, else F32."""
        return DType.BF16 if self.supports_bf16() else DType.F32

    def set_seed(self, seed: int) -> None:
        """Seed MLX's random generator, which all devices share and every thread has its own of.

        candle refuses on the CPU, whose generator it cannot seed; here it works on every device. Raises
        ``Error`` unless 0 <= seed < 2^64.
        """
        try:
            value = -1 if isinstance(seed, bool) else operator.index(seed)
        except TypeError:
            value = -1
        if not 0 <= value < 2**64:
            raise Error(f"set_seed: got {seed!r}; takes an integer from 0 to 2^64 - 1")
        mx.random.seed(value)
        _seed.last = value

    def get_current_seed(self) -> int:
        """The seed that ``set_seed`` was last given in this thread. Raises ``Error`` if there was none."""
        if _seed.last is None:
            raise Error("get_current_seed: set_seed was not called in this thread, so MLX chose the seed itself")
        return _seed.last

    def with_context(self, f: Callable[[], R]) -> R:
        """What ``f()`` returns. MLX has no pool of threads to run it on, as candle has."""
        return f()

    def synchronize(self) -> None:
        """Wait until the device's work is done."""
        mx.synchronize(self.mlx())

    def mlx(self) -> mx.Device:
        """MLX's device."""
        return _mlx_device(self)

    def __repr__(self) -> str:
        return "Device.Cpu" if self.is_cpu() else f"Device.{self.kind.name}({self.index})"


@lru_cache(64)
def _mlx_device(device: Device) -> mx.Device:
    return mx.Device(mx.cpu if device.is_cpu() else mx.gpu, device.index)


def _missing(index: int) -> str:
    """Why there is no GPU of this index; empty if there is one, or if there is none at all to count."""
    if type(index) is int and index == 0:
        return ""
    count = mx.device_count(mx.gpu) if mx.metal.is_available() or mx.cuda.is_available() else 0
    if type(index) is int and 0 <= index < count:
        return ""
    return f"got index {index!r}; takes 0" + (f" to {count - 1}" if count > 1 else "")


_NAMES = "takes a Device or its name: cpu, metal or cuda, with an index if there are several: cuda:1"


def _named(name: str) -> Device:
    kind, colon, index = name.partition(":")
    known = kind in ("cpu", "metal", "cuda")
    if not known or (colon and not (index.isascii() and index.isdigit())) or (kind == "cpu" and int(index or 0)):
        raise Error(f"device: cannot read {name!r}; {_NAMES}")
    if kind == "cpu":
        return Device.Cpu
    return (Device.new_metal if kind == "metal" else Device.new_cuda)(int(index or 0))


Device.Cpu = Device(DeviceType.Cpu)
DeviceLike = Union[Device, str, mx.Device, mx.DeviceType, None]

"""Whether a tensor can be there at all: MLX ends the process when the CPU's memory cannot hold an array."""

from __future__ import annotations

import os
from functools import cache

import mlx.core as mx

from ..device import Device
from ..dtype import DType
from ..error import DeviceError, UnsupportedDTypeForOpError
from ..shape import Shape

_SURE = 1 << 28  # bytes that need no looking up


@cache
def machine_memory() -> int:
    """Bytes of this machine's memory; where the system does not say, more than any has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 47


def device_memory() -> int:
    """Bytes of memory of MLX's default device; where it shares the machine's, what the system recommends to use."""
    told = mx.device_info(mx.default_device())
    for name in ("max_recommended_working_set_size", "memory_size", "total_memory"):
        if told.get(name):
            return int(told[name])
    return machine_memory()


def check_room(op: str, shape: Shape, dtype: DType, device: Device) -> None:
    """Raise unless a tensor of this shape and dtype can be on ``device``.

    ``UnsupportedDTypeForOpError`` for F64 off the CPU, ``DeviceError.AllocationFailed`` for more bytes than the machine
    has.
    """
    if dtype is DType.F64 and not device.is_cpu():
        raise UnsupportedDTypeForOpError(op, dtype, f"f64 on Device.Cpu only, got {device}")
    needed = shape.elem_count() * dtype.size_in_bytes()
    if needed > _SURE and needed > machine_memory() and not device.is_cuda():
        what = f" for {op}, shape {tuple(shape)} of {dtype}; this machine has {machine_memory()}"
        raise DeviceError.AllocationFailed(requested_bytes=needed, what=what)

"""What this process computes with; candle's ``candle_core::utils``, answered at run time, not at compile time."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import mlx.core as mx

from . import blas, openblas

R = TypeVar("R")


def cuda_is_available() -> bool:
    """Whether MLX has a CUDA back-end and a GPU for it."""
    return bool(mx.cuda.is_available())


def metal_is_available() -> bool:
    """Whether MLX has a Metal back-end and a GPU for it."""
    return bool(mx.metal.is_available())


def has_accelerate() -> bool:
    """Whether Apple's Accelerate multiplies MLX's matrices on the CPU, as on every Mac."""
    return sys.platform == "darwin"


def has_mkl() -> bool:
    """Whether Intel's MKL multiplies MLX's matrices on the CPU: it was preloaded, or ``METAL_CANDLE_BLAS`` names it."""
    path = blas.status().path
    return path is not None and "mkl" in path.name.lower()


def get_num_threads() -> int:
    """How many threads a matrix product on the CPU uses.

    What the loaded OpenBLAS says, which ``OPENBLAS_NUM_THREADS`` sets; the number of cores where Accelerate or
    another BLAS decides for itself; 1 with MLX's own on Linux. Everything else MLX computes on the CPU is done
    by one thread.
    """
    path = blas.status().path
    if path is not None:
        count = _openblas_threads(path)
        return _cores() if count is None else count
    return _cores() if has_accelerate() else 1


def with_avx() -> bool:
    """Whether the CPU has AVX2, which candle's flag of this name asks for."""
    return "avx2" in _cpu_flags()


def with_f16c() -> bool:
    """Whether the CPU converts half-precision numbers itself (x86's F16C)."""
    return "f16c" in _cpu_flags()


def with_neon() -> bool:
    """Whether the CPU has NEON, as every 64-bit ARM has."""
    return platform.machine() in ("arm64", "aarch64")


def with_simd128() -> bool:
    """Whether WebAssembly's vectors are used: never, since MLX is not built for it."""
    return False


def with_threadpool(f: Callable[[], R]) -> R:
    """What ``f()`` returns. MLX has no pool of threads to run it on, as candle has."""
    return f()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _openblas_threads(path: Path) -> int | None:
    """What an OpenBLAS that is loaded says, ``None`` if the library is another one."""
    try:
        library = ctypes.CDLL(str(path))  # the one in the process, not another copy
    except OSError:  # linked into the program itself
        library = ctypes.CDLL(None)
    for name in ("openblas_get_num_threads", f"{openblas.PREFIX}openblas_get_num_threads"):
        if hasattr(library, name):
            return int(getattr(library, name)())
    return None


@cache
def _cpu_flags() -> frozenset[str]:
    """What Linux says an x86 CPU can do. Empty elsewhere: MLX for the Mac is for ARM alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(word for line in lines if line.startswith("flags") for word in line.partition(":")[2].split())

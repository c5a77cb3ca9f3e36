"""An optimised BLAS for MLX on a Linux CPU, loaded before ``mlx.core`` is first imported.

MLX's Linux wheel multiplies with the reference BLAS, on one thread and without vector instructions. A
library that was loaded before with ``RTLD_GLOBAL`` comes first when the dynamic linker resolves MLX's
calls, so OpenBLAS takes them over. ``METAL_CANDLE_BLAS`` chooses: ``auto``, ``off`` or a library's path.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from . import openblas, settings
from .elf import check_complete

WHEEL = "scipy-openblas32"
SETTING = "METAL_CANDLE_BLAS path"
SYSTEM = "system OpenBLAS"
PROCESS = "already in the process"
OWN = "MLX's own"

_MACHINES = ("x86_64", "aarch64")


@dataclass(frozen=True)
class Blas:
    """What multiplies MLX's matrices on the CPU.

    ``path`` is the library that was loaded for it, ``None`` if none was. ``found`` says where it is from:
    ``"scipy-openblas32"``, ``"METAL_CANDLE_BLAS path"``, ``"system OpenBLAS"``, ``"already in the process"``
    (as with ``LD_PRELOAD``) or ``"MLX's own"``. ``reason`` says why nothing was loaded; ``advice`` is the
    one command that would help, or empty.
    """

    path: Path | None
    found: str
    reason: str = ""
    advice: str = ""


_status: Blas | None = None


def load() -> Blas:
    """Load an optimised BLAS into the process, once; the first time it is built into the cache folder.

    Nothing is loaded on macOS, with MLX's CUDA back-end, with ``METAL_CANDLE_BLAS=off`` or once
    ``mlx.core`` is imported; ``status()`` says which. Warns (``RuntimeWarning``) of a library that cannot
    be used and of ``mlx.core`` imported first. Never raises of itself.
    """
    global _status
    if _status is None:
        # Set before it warns: where warnings are errors, the next import must find it done.
        _status, warn = _choose(settings.BLAS.value.strip())
        if warn:
            message = f"metal_candle: {_status.reason}; {_status.advice}"
            warnings.warn(message, RuntimeWarning, stacklevel=3)  # the line that imports metal_candle
    return _status


def status() -> Blas:
    """What ``load()`` found, which ``import metal_candle`` has called."""
    return load()


def can_be_single() -> bool:
    """Whether ``single()`` has an effect: an OpenBLAS multiplies, which can be told how many threads to use."""
    return _thread_calls() is not None


def numpy_can_be_single() -> bool:
    """Whether ``single()`` has an effect on NumPy's products."""
    return _numpy_thread_calls() is not None


@contextmanager
def single() -> Iterator[None]:
    """Within the block every product in the process is computed by the thread that asks for it alone.

    For threads that multiply at the same time: OpenBLAS lets its own threads take turns for them, and wait busily.
    Blocks of several threads may overlap: with the last the former number is back.
    """
    global _blocks, _before
    calls = [each for each in (_thread_calls(), _numpy_thread_calls()) if each is not None]
    with _lock:
        if _blocks == 0:
            _before = [get() for get, _ in calls]
            for _, put in calls:
                put(1)
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if _blocks == 0:
                for (_, put), count in zip(calls, _before):
                    put(count)


_lock = threading.Lock()
_blocks = 0
_before: list[int] = []


@lru_cache(maxsize=1)
def _thread_calls() -> tuple[Any, Any] | None:
    """What reads and what sets OpenBLAS's number of threads, ``None`` where something else multiplies."""
    path = status().path
    if path is None:
        return None
    return _calls_of(ctypes.CDLL(None if path == Path(sys.executable) else str(path)))


@lru_cache(maxsize=1)
def _numpy_thread_calls() -> tuple[Any, Any] | None:
    """The same for the library that NumPy multiplies with: its wheels bring their own."""
    import numpy as np

    package = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
    file = import_module(f"{package}._multiarray_umath").__file__
    return None if file is None else _calls_of(ctypes.CDLL(file))


def _calls_of(library: ctypes.CDLL) -> tuple[Any, Any] | None:
    """The two calls of an OpenBLAS, which may also be one that ``library`` was linked with; ``None`` without one."""
    for prefix in ("openblas", "scipy_openblas"):
        for suffix in ("", "64_"):
            put = f"{prefix}_set_num_threads{suffix}"
            if hasattr(library, put):
                return getattr(library, put.replace("_set_", "_get_")), getattr(library, put)
    return None


def _choose(setting: str) -> tuple[Blas, bool]:
    """The BLAS to use, loaded, and whether to warn of its ``reason``."""
    if sys.platform != "linux":
        return Blas(None, OWN, "only MLX's Linux build needs another BLAS"), False
    if os.uname().machine not in _MACHINES:
        return Blas(None, OWN, f"there is no MLX for a {os.uname().machine} CPU"), False
    if setting == "off":
        return Blas(None, OWN, "METAL_CANDLE_BLAS=off", "unset METAL_CANDLE_BLAS"), False
    if openblas.has_cuda():
        return Blas(None, OWN, "MLX's CUDA back-end multiplies on the GPU"), False
    present = _provider(ctypes.CDLL(None))
    if present:
        return Blas(present, PROCESS), False
    if "mlx.core" in sys.modules:
        reason = "mlx.core was imported first, so its CPU matrix products keep MLX's slow BLAS"
        return Blas(None, OWN, reason, "import metal_candle before mlx.core"), True
    if setting not in ("", "auto"):
        return _named(setting)
    try:
        return Blas(_wheel(), WHEEL), False
    except (openblas.Unavailable, OSError) as error:
        advice = error.advice if isinstance(error, openblas.Unavailable) else openblas.INSTALL
        try:
            return Blas(_system(), SYSTEM), False
        except (OSError, ValueError) as second:
            return Blas(None, OWN, f"{error}; {second}", advice), False


def _named(setting: str) -> tuple[Blas, bool]:
    try:
        path = Path(os.path.expanduser(setting))
        if not path.is_file():
            raise ValueError("no such file; takes auto, off or the path of a shared library")
        check_complete(path)
        return Blas(_open(str(path)), SETTING), False
    except (OSError, ValueError) as error:
        reason = f"METAL_CANDLE_BLAS={setting}: {error}"
        return Blas(None, OWN, reason, "unset METAL_CANDLE_BLAS"), True


def _wheel() -> Path:
    """Load the wheel's OpenBLAS from the first place where it can be kept, made there if need be."""
    failures: dict[str, None] = {}
    advice = "export METAL_CANDLE_CACHE=/a/folder/that/you/own"
    for path in openblas.candidates():
        for make_sure in (openblas.check, openblas.build):
            try:
                make_sure(path)
                return _open(str(path))
            except openblas.Unavailable as error:
                failure, advice = error.reason, error.advice
            except (OSError, ValueError) as error:
                failure = str(error)
        failures[failure] = None
    raise openblas.Unavailable("; ".join(failures), advice)


def _system() -> Path:
    """Load the OpenBLAS that the system's linker knows."""
    from ctypes.util import find_library  # runs ldconfig, so only where it is wanted

    name = find_library("openblas")
    if name is None:
        raise ValueError("the system has no OpenBLAS")
    return _open(name)


def _open(name: str) -> Path:
    """Load a BLAS for the whole process. Raises ``OSError`` if it cannot be, ``ValueError`` if it is none."""
    library = ctypes.CDLL(name)  # for nobody else yet: what fails the checks must not be found by MLX
    path = _provider(library)
    fault = "has no cblas_sgemm" if path is None else ""
    if hasattr(library, "openblas_get_config"):
        library.openblas_get_config.restype = ctypes.c_char_p
        if b"USE64BITINT" in library.openblas_get_config():
            fault = "takes 64-bit sizes; MLX passes 32-bit ones"
    if path is None or fault:
        # Let go, or a file that replaces this one would not be looked at: its name would be loaded already.
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))
        raise ValueError(f"{name} {fault}")
    ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    return path


def _provider(library: ctypes.CDLL) -> Path | None:
    """The file whose ``cblas_sgemm`` a look-up in ``library`` finds."""
    if not hasattr(library, "cblas_sgemm"):
        return None
    address = ctypes.cast(library.cblas_sgemm, ctypes.c_void_p).value or 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, file = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= address < end:
            return Path(file)
    return Path(sys.executable)  # linked into the program itself

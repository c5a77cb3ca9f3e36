"""NVIDIA's run-time compiler, from the package ``nvidia-cuda-nvrtc``: text to machine code, no GPU needed."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Output(NamedTuple):
    """What the compiler gave: machine code (ELF) or PTX, empty if it failed, and what it had to say."""

    code: bytes
    log: str


def shared_object() -> Path | None:
    """The compiler's shared object, if the package is installed."""
    return _of_nvidia("lib/libnvrtc.so.*")


def headers() -> Path | None:
    """The folder of CUDA's headers, if ``nvidia-cuda-runtime`` is installed."""
    found = _of_nvidia("include/cuda_fp16.h")
    return None if found is None else found.parent


def _of_nvidia(pattern: str) -> Path | None:
    # A namespace: several packages put their parts there.
    spec = find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((file for folder in folders for file in sorted(Path(folder).glob(f"cu*/{pattern}"))), None)


@cache
def _loaded() -> ctypes.CDLL:
    found = shared_object()
    if found is None:
        raise RuntimeError("nvrtc: nvidia-cuda-nvrtc is not installed")
    loaded = ctypes.CDLL(str(found))
    loaded.nvrtcGetErrorString.restype = ctypes.c_char_p
    return loaded


def version() -> str:
    """The compiler's version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("Version", ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_text(text: str, names: Sequence[str], included: Mapping[str, str], options: Sequence[str]) -> Output:
    """Compile ``text``, which holds the kernels ``names``, with texts that ``#include`` finds by name.

    Machine code for an architecture ``sm_…``, PTX for ``compute_…``.
    """
    program = ctypes.c_void_p()
    keys = (ctypes.c_char_p * len(included))(*[key.encode() for key in included])
    texts = (ctypes.c_char_p * len(included))(*[value.encode() for value in included.values()])
    _call("CreateProgram", ctypes.byref(program), text.encode(), b"kernel.cu", len(included), texts, keys)
    try:
        for name in names:
            _call("AddNameExpression", program, name.encode())
        flags = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        failed = _loaded().nvrtcCompileProgram(program, len(options), flags)
        log = _bytes("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
        if failed:
            return Output(b"", log or _loaded().nvrtcGetErrorString(failed).decode())
        kind = "CUBIN" if any("=sm_" in option for option in options) else "PTX"
        return Output(_bytes(kind, program), log)
    finally:
        _call("DestroyProgram", ctypes.byref(program))


def _bytes(what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _call(f"Get{what}Size", program, ctypes.byref(size))
    held = ctypes.create_string_buffer(size.value)
    _call(f"Get{what}", program, held)
    return held.raw


def _call(what: str, *arguments: object) -> None:
    failed = getattr(_loaded(), f"nvrtc{what}")(*arguments)
    if failed:
        raise RuntimeError(f"nvrtc{what}: {_loaded().nvrtcGetErrorString(failed).decode()}")

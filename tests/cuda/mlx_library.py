"""What MLX for CUDA hands to its compiler beside the text: headers inside its library, and CCCL's files."""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metal_candle.cache import cache_folder

import mlx.core as mx
import numpy as np

WHEEL = "METAL_CANDLE_MLX_CUDA"
"""The environment variable that names a folder with the wheel ``mlx-cuda-13``, as ``pip download`` leaves it."""

FOLDER = "mlx/backend/cuda/device/"
# What the one header that a custom kernel includes reaches.
EMBEDDED = ("utils.cuh", "complex.cuh", "config.h")

# ELF: https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_SYMTAB = 2


class Headers(NamedTuple):
    """The embedded headers by the name they are included by, and the folder of CCCL."""

    embedded: dict[str, str]
    cccl: Path


def found() -> Path | None:
    """The wheel, or the library of MLX where it is the one for CUDA."""
    folder = os.environ.get(WHEEL)
    if folder:
        return next(iter(sorted(Path(folder).glob("mlx_cuda_*.whl"))), None)
    return Path(mx.__file__).parent / "lib" / "libmlx.so" if mx.cuda.is_available() else None


def binary(path: Path) -> bytes:
    """The library, out of the wheel if ``path`` is one."""
    if path.suffix != ".whl":
        return path.read_bytes()
    with zipfile.ZipFile(path) as wheel:
        return wheel.read("mlx/lib/libmlx.so")


def headers(path: Path) -> Headers:
    """What stands in the wheel or library, kept in the cache."""
    size = path.stat().st_size
    kept = cache_folder("cuda-check", f"{path.stem}-{size}")
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            made = Path(scratch) / "headers"
            made.mkdir()
            (made / "embedded.json").write_text(json.dumps(_embedded(binary(path))))
            if path.suffix == ".whl":
                _unpack_cccl(path, made)
            # Renamed when whole: a run beside this one, or one that was interrupted, does no harm.
            if not kept.is_dir():
                made.rename(kept)
    cccl = kept / "mlx/include/cccl" if path.suffix == ".whl" else path.parents[1] / "include/cccl"
    return Headers(json.loads((kept / "embedded.json").read_text()), cccl)


def _unpack_cccl(path: Path, into: Path) -> None:
    with zipfile.ZipFile(path) as wheel:
        wheel.extractall(into, [name for name in wheel.namelist() if name.startswith("mlx/include/cccl/")])


def _embedded(library: bytes) -> dict[str, str]:
    sections = list(_sections(library))
    symtab = next((each for each in sections if each["type"] == _SYMTAB), None)
    if symtab is None:
        raise RuntimeError("libmlx.so: has no symbol table, by which its headers are found")
    names = sections[symtab["link"]]
    strings = library[names["offset"] : names["offset"] + names["size"]]
    symbols = np.frombuffer(library, _SYMBOL, symtab["size"] // _SYMBOL.itemsize, symtab["offset"])
    texts = {}
    for file in EMBEDDED:
        variable = f"jit_source_{file.partition('.')[0]}"
        at = strings.find(f"\0_ZN3mlx4coreL{len(variable)}{variable}E\0".encode()) + 1
        if not at:
            raise RuntimeError(f"libmlx.so: has no {file}")
        symbol = symbols[symbols["name"] == at][0]
        section = sections[int(symbol["section"])]
        start = int(symbol["value"]) - section["address"] + section["offset"]
        texts[FOLDER + file] = library[start : start + int(symbol["size"])].rstrip(b"\0").decode()
    return texts


def _sections(library: bytes) -> Iterator[dict[str, Any]]:
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count = struct.unpack_from("<HH", library, 0x3A)
    for i in range(count):
        _, kind, _, address, offset, length, link, *_ = _SECTION.unpack_from(library, table + i * size)
        yield {"type": kind, "address": address, "offset": offset, "size": length, "link": link}

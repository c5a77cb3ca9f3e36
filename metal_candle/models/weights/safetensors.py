"""Safetensors files: headers checked before a byte is trusted, folders of shards, whole-or-nothing writing.

The format: 8 bytes little-endian header length, the header as JSON, then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import ModelError
from ...files import parse_json_object, read_json_object, write_atomically

DTYPES: dict[str, mx.Dtype] = {
    "F32": mx.float32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "I64": mx.int64,
    "I32": mx.int32,
    "I16": mx.int16,
    "I8": mx.int8,
    "U64": mx.uint64,
    "U32": mx.uint32,
    "U16": mx.uint16,
    "U8": mx.uint8,
    "BOOL": mx.bool_,
}
"""The dtypes that are read and written. Others (F64, the F8s) have no faithful array on every device."""

HEADER_LIMIT = 100_000_000
"""Longest header in bytes, the limit of the reference implementation: a damaged length is found at once."""

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a header; ``begin`` and ``end`` count bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds, without its numbers."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)


def _invalid(path: object, reason: str) -> ModelError:
    return ModelError.InvalidFormat(reason=f"{path}: {reason}")


# --- reading ----------------------------------------------------------------------------------


def read_header(path: str | PathLike[str]) -> Header:
    """Read and check the header of one file; the tensors' bytes are not read.

    Raises ``ModelError.FileNotFound``, or ``ModelError.InvalidFormat`` when the file is truncated, its
    offsets overlap, leave gaps or leave the file, or a dtype and shape do not give the bytes they claim.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = file.read(8)
            if len(length) < 8:
                raise _invalid(path, f"holds {size} bytes, not even a header; fetch or save the file again")
            (header_size,) = struct.unpack("<Q", length)
            if header_size > HEADER_LIMIT:
                raise _invalid(path, f"claims a header of {header_size} bytes; not a safetensors file")
            if 8 + header_size > size:
                raise _invalid(path, f"truncated inside its header at {size} bytes; fetch the file again")
            text = file.read(header_size)
    except FileNotFoundError as error:
        raise ModelError.FileNotFound(path=path) from error
    except OSError as error:
        raise _invalid(path, error.strerror or str(error)) from error
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(path, "the header is not text; not a safetensors file") from error
    entries = parse_json_object(decoded, f"{path}: header", lambda reason: ModelError.InvalidFormat(reason=reason))
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _invalid(path, "__metadata__ is not an object")
    start = 8 + header_size
    tensors = {name: _tensor_info(path, name, entry, start) for name, entry in entries.items()}
    _check_layout(path, tensors, start, size)
    return Header(tensors, {str(key): str(value) for key, value in metadata.items()})


def _tensor_info(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise _invalid(path, f"tensor {name}: the entry lacks dtype, shape or data_offsets") from error
    if any(type(number) is not int or number < 0 for number in sizes):
        raise _invalid(path, f"tensor {name}: shape {shape} or offsets {begin}, {end} are no sizes")
    if dtype not in DTYPES:
        raise _invalid(path, f"tensor {name} is {dtype}; takes {', '.join(DTYPES)}")
    wanted = math.prod(shape) * DTYPES[dtype].size
    if end - begin != wanted:
        raise _invalid(path, f"tensor {name}: {dtype} {tuple(shape)} is {wanted} bytes, not {end - begin}")
    return TensorInfo(dtype, tuple(shape), start + begin, start + end)


def _check_layout(path: Path, tensors: dict[str, TensorInfo], start: int, size: int) -> None:
    """The tensors lie one behind the other from the header's end to the file's end."""
    position = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            kind = "overlaps the one before it" if info.begin < position else "leaves a gap before it"
            raise _invalid(path, f"tensor {name} {kind}")
        position = info.end
    if position > size:
        raise _invalid(path, f"truncated: {size} bytes of {position}; fetch the file again")
    if position < size:
        raise _invalid(path, f"{size - position} bytes follow the last tensor")


def find_files(path: str | PathLike[str]) -> list[Path]:
    """The weight files of a model folder: ``model.safetensors``, or the shards its index names.

    Raises ``ModelError.FileNotFound`` when there are none or a shard is missing, and
    ``ModelError.InvalidFormat`` for a damaged index.
    """
    folder = Path(path)
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.is_file():
        return [whole]
    if not index.is_file():
        other = next((f.name for pattern in ("*.safetensors", "*.bin") for f in folder.glob(pattern)), None)
        found = f"; {other} is there, which is not read: rename or convert it" if other else ""
        raise ModelError.FileNotFound(path=f"{whole} (nor {INDEX}){found}")
    return [folder / name for name in dict.fromkeys(_weight_map(index).values())]


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, with every file present."""
    entries = read_json_object(index, lambda reason: ModelError.InvalidFormat(reason=reason)).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise _invalid(index, "has no weight_map")
    for name in entries.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise _invalid(index, f"weight_map names {name!r}; takes file names in the same folder")
    missing = [name for name in dict.fromkeys(entries.values()) if not (index.parent / name).is_file()]
    if missing:
        raise ModelError.FileNotFound(path=f"{index.parent / missing[0]}, named in {INDEX}; fetch it again")
    return entries


def load_file(path: str | PathLike[str]) -> dict[str, mx.array]:
    """The tensors of one file, checked by ``read_header`` first; numbers are read when evaluated."""
    read_header(path)
    return _mlx_load(Path(path))


def load_directory(path: str | PathLike[str]) -> dict[str, mx.array]:
    """The tensors of a model folder, of one file or several; numbers are read when evaluated.

    Every header is checked before the first array is made. Raises as ``find_files`` and ``read_header``,
    and ``ModelError.InvalidFormat`` when a shard lacks a tensor that the index puts there.
    """
    files = find_files(path)
    headers = {file.name: read_header(file) for file in files}
    index = Path(path) / INDEX
    if files[0].name != "model.safetensors":
        for name, file in _weight_map(index).items():
            if name not in headers[file].tensors:
                raise _invalid(index, f"puts tensor {name} into {file}, which lacks it")
    return {name: array for file in files for name, array in _mlx_load(file).items()}


def _mlx_load(path: Path) -> dict[str, mx.array]:
    try:
        arrays = mx.load(str(path), format="safetensors")
    except (RuntimeError, ValueError) as error:
        raise _invalid(path, f"MLX cannot read it: {error}") from error
    assert isinstance(arrays, dict)  # what mx.load gives for safetensors
    return arrays


# --- writing ----------------------------------------------------------------------------------


def save(
    path: str | PathLike[str],
    arrays: Mapping[str, mx.array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one file, whole or not at all; array by array, so that memory stays at the largest of them.

    ``metadata`` defaults to ``{"format": "pt"}``, which transformers wants. Raises
    ``CheckpointError.SaveFailed`` when the file cannot be written and ``ModelError.InvalidFormat`` for a
    dtype the format lacks; an old file is then unchanged.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": dict({"format": "pt"} if metadata is None else metadata)}
    position = 0
    # Widest dtypes first keep every tensor aligned to its element, as the reference implementation does.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.size, item[0]))
    for name, array in ordered:
        if array.dtype not in names:
            raise _invalid(path, f"tensor {name} is {array.dtype}; takes {', '.join(DTYPES)}")
        end = position + array.nbytes
        entries[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % 8)
    with write_atomically(path) as beside, beside.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _, array in ordered:
            bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array  # NumPy has no bfloat16
            file.write(np.ascontiguousarray(bits).data)

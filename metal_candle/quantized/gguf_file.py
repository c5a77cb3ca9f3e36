"""GGUF files. candle: ``candle_core::quantized::gguf_file``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any, TypeVar

from ..device import DeviceLike
from ..error import CannotFindTensorError, Error
from ..error.text import shown
from ..formats.byte_reader import Source
from ..formats.ggml_blocks import byte_count
from ..formats.gguf import DEFAULT_ALIGNMENT, GGUFTensor, read_gguf_header, read_tensor_bytes
from ..formats.gguf_value import Value, ValueType
from ..formats.gguf_writer import Entry, Target, write_gguf
from ..shape import Shape
from .ggml_dtype import GgmlDType
from .qtensor import QTensor

__all__ = ["DEFAULT_ALIGNMENT", "Content", "TensorInfo", "Value", "ValueType", "VersionedMagic", "write"]

V = TypeVar("V")


class VersionedMagic(Enum):
    """The versions of the format that are read."""

    GgufV1 = 1
    GgufV2 = 2
    GgufV3 = 3


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its type, its row-major shape, and where it begins behind ``tensor_data_offset``."""

    ggml_dtype: GgmlDType
    shape: Shape
    offset: int

    def read(self, reader: Source, tensor_data_offset: int, device: DeviceLike = None) -> QTensor:
        """The tensor's blocks from the file. Raises ``NotFoundError``, ``IoError``, ``ModelError``."""
        begin = tensor_data_offset + self.offset
        kind = self.ggml_dtype.ggml_name
        place = GGUFTensor(kind, self.shape, begin, begin + byte_count(kind, self.shape.elem_count()))
        return QTensor.from_data(read_tensor_bytes(reader, place), self.shape, self.ggml_dtype, device)


@dataclass(frozen=True)
class Content:
    """A header: ``magic``, ``metadata``, ``tensor_infos``, ``tensor_data_offset``. Tensors are read on demand."""

    magic: VersionedMagic
    metadata: dict[str, Value]
    tensor_infos: dict[str, TensorInfo]
    tensor_data_offset: int

    @staticmethod
    def read(reader: Source) -> Content:
        """The header of a GGUF file: of a path, a binary file that can seek, or bytes.

        Nothing else is read. Versions 1 to 3, little-endian; every count and offset is checked against the file's
        size. Raises ``NotFoundError``, ``IoError``, ``ModelError.IncompatibleVersion``, and
        ``ModelError.InvalidFormat`` for whatever is damaged. candle: ``Content::read``.
        """
        header = read_gguf_header(reader)
        infos = {
            name: TensorInfo(GgmlDType.of(tensor.type), Shape(tensor.shape), tensor.begin - header.data_start)
            for name, tensor in header.tensors.items()
        }
        return Content(VersionedMagic(header.version), header.values, infos, header.data_start)

    def tensor(self, reader: Source, name: str, device: DeviceLike = None) -> QTensor:
        """One tensor of the file that this was read from; the same file has to be given again.

        Raises ``CannotFindTensorError`` with the nearest names. candle: ``Content::tensor``.
        """
        info = self.tensor_infos.get(name)
        if info is None:
            raise CannotFindTensorError(name, get_close_matches(name, self.tensor_infos, cutoff=0.4))
        return info.read(reader, self.tensor_data_offset, device)


def write(
    path_or_file: Target,
    metadata: Mapping[str, Any] | Iterable[tuple[str, Any]],
    tensors: Mapping[str, QTensor] | Iterable[tuple[str, QTensor]],
) -> None:
    """Write a GGUF file of version 3 (candle: 2, which has the same layout); at a path whole or not at all.

    ``metadata`` are ``Value``s or what ``Value.of`` takes: ``bool``, ``str``, ``float`` (F32), ``int`` (U32, else I32,
    U64 or I64), lists of them, NumPy numbers and arrays. Both may be dicts or pairs. Raises ``Error`` for a name that
    is there twice and what a file cannot hold, before anything is written, ``CheckpointError.SaveFailed``, and
    ``IoError`` for an open file. candle: ``gguf_file::write``.
    """
    values = {key: Value.of(value) for key, value in _pairs(metadata, "metadata key")}
    entries = []
    for name, tensor in _pairs(tensors, "tensor"):
        if not isinstance(tensor, QTensor):
            found = type(tensor).__name__
            raise Error(f"gguf write: tensor {shown(name)} is a {found}; takes a QTensor: QTensor.quantize")
        entries.append(Entry(name, tensor.dtype().ggml_name, tensor.shape(), tensor.blocks()))
    write_gguf(path_or_file, values, entries)


def _pairs(given: Mapping[str, V] | Iterable[tuple[str, V]], what: str) -> list[tuple[str, V]]:
    pairs = list(given.items() if isinstance(given, Mapping) else given)
    seen: set[str] = set()
    for name, _ in pairs:
        if not isinstance(name, str):
            raise Error(f"gguf write: got {type(name).__name__} for the name of a {what}; takes text")
        if name in seen:
            raise Error(f"gguf write: {what} {shown(name)} is there twice")
        seen.add(name)
    return pairs

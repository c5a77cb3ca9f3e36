"""Safetensors files: whole, tensor by tensor, in shards with an index. candle: ``candle_core::safetensors``.

A file's U16 become U32, as in candle. BOOL, I8, U64 and the dtypes below 16 bits are no tensors here: asking for one
raises ``UnsupportedSafeTensorDtypeError``, the others of the file can be had.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Union

import mlx.core as mx

from .device import DeviceLike
from .dtype import DType
from .error import (
    CannotFindTensorError,
    DimOutOfRangeError,
    Error,
    NarrowInvalidArgsError,
    SafeTensorError,
    UnsupportedSafeTensorDtypeError,
)
from .formats import safetensors as one_file
from .formats import sharded
from .formats.raw import Buffer
from .formats.reading import OpenFile, is_folder, shown
from .shape import Shape
from .tensor import Tensor
from .tensor.base import TensorBase

DTYPES = {
    "U8": DType.U8,
    "U16": DType.U32,
    "U32": DType.U32,
    "I16": DType.I16,
    "I32": DType.I32,
    "I64": DType.I64,
    "F16": DType.F16,
    "BF16": DType.BF16,
    "F32": DType.F32,
    "F64": DType.F64,
}
"""The file's names of the dtypes that tensors have."""

PathOrStr = Union[str, PathLike[str]]


# --- all tensors ------------------------------------------------------------------------------


def load(path: PathOrStr, device: DeviceLike = None) -> dict[str, Tensor]:
    """The tensors of a file; ours also of a folder with ``model.safetensors`` or an index, and of an ``.index.json``.

    Raises ``NotFoundError``, ``IoError``, ``SafeTensorError`` for a damaged file or index,
    ``UnsupportedSafeTensorDtypeError``, and ``UnsupportedDTypeForOpError`` for F64 on another device than the CPU.

    candle: ``load<P: AsRef<Path>>(filename: P, device: &Device) -> Result<HashMap<String, Tensor>>``
    """
    path = Path(path)
    if is_folder(path):
        files = sharded.find_files(path)
        index = None if files[0].name == sharded.WHOLE else path / sharded.INDEX
    elif path.name.endswith(".json"):
        index, files = path, sharded.indexed_files(path)
    else:
        index, files = None, [path]
    readers = {file.name: one_file.Reader(file) for file in files}
    if index is None:
        return {name: _tensor(reader, name, device) for reader in readers.values() for name in reader.header.tensors}
    sharded.check_index(index, {name: reader.header for name, reader in readers.items()})
    return {name: _tensor(readers[file], name, device) for name, file in sharded.weight_map(index).items()}


def load_buffer(data: Buffer, device: DeviceLike = None) -> dict[str, Tensor]:
    """The tensors of a file's bytes. Raises as ``load``.

    candle: ``load_buffer(data: &[u8], device: &Device) -> Result<HashMap<String, Tensor>>``
    """
    reader = one_file.Reader(_buffer("load_buffer", data))
    return {name: _tensor(reader, name, device) for name in reader.header.tensors}


def save(tensors: Mapping[str, TensorBase], path: PathOrStr, metadata: Mapping[str, str] | None = None) -> None:
    """Write one file, whole or not at all; ``metadata`` is ours, candle writes none.

    transformers wants ``{"format": "pt"}`` in files of weights. Raises ``CheckpointError.SaveFailed`` (an
    ``OSError``) when the file cannot be written, ``SafeTensorError`` for names or metadata the format cannot hold.

    candle: ``save<K, P>(tensors: &HashMap<K, Tensor>, filename: P) -> Result<()>``
    """
    _check_named("save", tensors, metadata)
    one_file.save(path, {name: tensor.mlx() for name, tensor in tensors.items()}, metadata)


def save_sharded(
    tensors: Mapping[str, TensorBase],
    directory: PathOrStr,
    max_shard_size: int = sharded.SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write files of at most ``max_shard_size`` bytes of tensors, or of one tensor, into a folder.

    Their names are ``model-00001-of-00003.safetensors`` … beside ``model.safetensors.index.json``, which says what is
    where; what fits in one file is ``model.safetensors``. All are written before the first takes its name. Files of a
    checkpoint that was there before and does not have the new one's names are removed. Raises as ``save``. Ours.
    """
    if max_shard_size < 1:
        raise Error(f"save_sharded: got max_shard_size {max_shard_size}; takes at least 1 byte")
    _check_named("save_sharded", tensors, metadata)
    if not isinstance(directory, (str, PathLike)):
        raise Error(f"save_sharded: got {type(directory).__name__}; takes (tensors, directory)")
    sizes = {name: tensor.elem_count() * tensor.dtype.size_in_bytes() for name, tensor in tensors.items()}

    def arrays(names: Sequence[str]) -> dict[str, mx.array]:
        return {name: tensors[name].mlx() for name in names}

    sharded.save(directory, sizes, arrays, max_shard_size, metadata)


def _check_named(op: str, tensors: object, metadata: object) -> None:
    if not isinstance(tensors, Mapping):
        place = "path" if op == "save" else "directory"
        raise Error(f"{op}: got {type(tensors).__name__} for the tensors; takes (tensors, {place}), a dict first")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise Error(f"{op}: got the name {shown(repr(name))}; takes a str")
        if not isinstance(tensor, TensorBase):
            raise Error(f"{op}: got {type(tensor).__name__} for {shown(name)}; takes tensors")
    if metadata is None:
        return
    if not isinstance(metadata, Mapping):
        raise Error(f"{op}: got {type(metadata).__name__} for the metadata; takes a dict of str to str")
    for key, text in metadata.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise Error(f"{op}: got metadata {shown(repr(key))}: {shown(repr(text))}; takes a dict of str to str")


def _buffer(op: str, data: Buffer) -> Buffer:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise Error(f"{op}: got {type(data).__name__}; takes a file's bytes (load takes a path)")
    return data


def _tensor(reader: one_file.Reader, name: str, device: DeviceLike) -> Tensor:
    return _as_tensor(reader, name, lambda: reader.array(name), device)


def _as_tensor(reader: one_file.Reader, name: str, array: Callable[[], mx.array], device: DeviceLike) -> Tensor:
    dtype = reader.header.tensors[name].dtype
    if dtype not in DTYPES:
        raise UnsupportedSafeTensorDtypeError(name, dtype, ", ".join(DTYPES))
    return Tensor._from_array(array().astype(mx.uint32) if dtype == "U16" else array(), device)


# --- single tensors ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorView:
    """One tensor of a file that is open, not read yet. candle: ``safetensors::tensor::TensorView``."""

    _reader: one_file.Reader
    _name: str

    @property
    def shape(self) -> Shape:
        """The sizes of its dims."""
        return Shape(self._reader.header.tensors[self._name].shape)

    @property
    def dtype(self) -> str:
        """The file's name of its dtype, "F32" or "BOOL" say: there are more than tensors have."""
        return self._reader.header.tensors[self._name].dtype

    def data_len(self) -> int:
        """Bytes of its elements."""
        info = self._reader.header.tensors[self._name]
        return info.end - info.begin

    def data(self) -> bytes:
        """Its elements as the file has them: little-endian, in C order."""
        return bytes(self._reader.data(self._name))

    def load(self, device: DeviceLike = None) -> Tensor:
        """It as a tensor. Raises as ``safetensors.load``."""
        return _tensor(self._reader, self._name, device)

    def load_part(self, dim: int, start: int, stop: int, device: DeviceLike = None) -> Tensor:
        """Its entries from ``start`` to ``stop`` along ``dim`` as a tensor; along dim 0 no others are read. Ours.

        Raises as ``safetensors.load``, ``DimOutOfRangeError`` and ``NarrowInvalidArgsError``.
        """
        if not -len(self.shape) <= dim < len(self.shape):
            raise DimOutOfRangeError("load_part", self.shape, dim)
        dim %= len(self.shape)
        if not 0 <= start <= stop <= self.shape[dim]:
            raise NarrowInvalidArgsError(self.shape, dim, start, stop - start)
        return _as_tensor(self._reader, self._name, lambda: self._reader.part(self._name, dim, start, stop), device)


class SliceSafetensors:
    """The tensors of a file's bytes, which are shared and not copied. candle: ``SliceSafetensors``."""

    def __init__(self, readers: Sequence[one_file.Reader]) -> None:
        self._readers = readers
        # The last one wins, as in candle.
        self._routing = {name: reader for reader in readers for name in reader.header.tensors}

    @classmethod
    def new(cls, buffer: Buffer) -> SliceSafetensors:
        """Check the header; nothing else is read. Raises ``SafeTensorError``."""
        return cls([one_file.Reader(_buffer("SliceSafetensors.new", buffer))])

    def load(self, name: str, device: DeviceLike = None) -> Tensor:
        """One tensor; only its bytes are read. Raises as ``get`` and ``safetensors.load``."""
        return self.get(name).load(device)

    def get(self, name: str) -> TensorView:
        """Shape, dtype and bytes of one tensor. Raises ``SafeTensorError`` for one that is not there."""
        if name not in self._routing:
            raise self._missing(name, difflib.get_close_matches(name, list(self._routing), n=3))
        return TensorView(self._routing[name], name)

    def tensors(self) -> list[tuple[str, TensorView]]:
        """All tensors with their names; nothing is read."""
        return [(name, TensorView(reader, name)) for name, reader in self._routing.items()]

    def metadata(self) -> dict[str, str]:
        """The texts that the file holds beside its tensors; of several files the last one's win. Ours."""
        return {key: text for reader in self._readers for key, text in reader.header.metadata.items()}

    def _missing(self, name: str, nearest: list[str]) -> Error:
        hint = f"; nearest: {', '.join(map(shown, nearest))}" if nearest else ""
        return SafeTensorError(self._readers[0].source, f"has no tensor {shown(name)}{hint}")


class BufferedSafetensors(SliceSafetensors):
    """The tensors of a file's bytes, which it owns. candle: ``BufferedSafetensors``."""

    @classmethod
    def new(cls, buffer: Buffer) -> BufferedSafetensors:
        """Check the header. Raises ``SafeTensorError``."""
        return cls([one_file.Reader(bytes(_buffer("BufferedSafetensors.new", buffer)))])


class MmapedSafetensors(SliceSafetensors):
    """The tensors of one file or of several, which stay open and are read tensor by tensor.

    candle maps them into memory; here they are read, because a mapped file that somebody cuts short ends the
    process. Also takes several threads. candle: ``MmapedSafetensors``.
    """

    def __init__(self, readers: Sequence[one_file.Reader], several: bool = False) -> None:
        super().__init__(readers)
        self._several = several

    @classmethod
    def new(cls, path: PathOrStr) -> MmapedSafetensors:  # type: ignore[override]
        """Check the header of a file. Raises ``NotFoundError``, ``IoError``, ``SafeTensorError``."""
        return cls([one_file.Reader(path)])

    @classmethod
    def multi(cls, paths: Sequence[PathOrStr]) -> MmapedSafetensors:
        """Check the headers of several files. Of tensors of one name, the last file's is taken.

        ``get`` and ``load`` raise ``CannotFindTensorError`` for a name that is not there, as in candle.
        """
        if isinstance(paths, (str, bytes, PathLike)):
            raise Error(f"MmapedSafetensors.multi: got {type(paths).__name__}; takes a list of paths (new takes one)")
        return cls([one_file.Reader(path) for path in paths], several=True)

    def _missing(self, name: str, nearest: list[str]) -> Error:
        return CannotFindTensorError(name, nearest) if self._several else super()._missing(name, nearest)


class MmapedFile:
    """A file whose header is read by ``deserialize``. candle: ``MmapedFile``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def new(cls, path: PathOrStr) -> MmapedFile:
        """A file that is there. Raises ``NotFoundError``, ``IoError``."""
        OpenFile(path)
        return cls(Path(path))

    def deserialize(self) -> MmapedSafetensors:
        """Its tensors. Raises as ``MmapedSafetensors.new``."""
        return MmapedSafetensors.new(self._path)

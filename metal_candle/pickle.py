"""PyTorch checkpoints, read without running anything from them. candle: ``candle_core::pickle``.

The zip files of ``torch.save`` since PyTorch 1.6: dictionaries of tensors, nested ones too, whose tensors have dotted
names; a key that is no text is in them as Python shows it. Values that are no tensors are passed over, those of
classes of Python, NumPy and PyTorch too, without making any. A file that refers to anything else, a function of ``os``
say, is refused with the name it refers to. Where candle skips a tensor that it cannot read, this raises ``PthError``.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Union

from .device import Device
from .dtype import DType
from .error.text import shown
from .formats import pth
from .layout import Layout
from .shape import Shape
from .tensor import Tensor

PathOrStr = Union[str, PathLike[str]]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, not read yet. candle: ``candle_core::pickle::TensorInfo``."""

    name: str
    """The keys that lead to it, joined by dots."""
    dtype: DType
    layout: Layout
    """Shape, strides and first element in the storage."""
    path: str
    """The storage's name in the archive."""
    storage_size: int
    """Elements in the storage, as the checkpoint claims."""


class PthTensors:
    """The tensors of a checkpoint, read when they are asked for. candle: ``candle_core::pickle::PthTensors``."""

    def __init__(self, reader: pth.Reader) -> None:
        self._reader = reader

    @classmethod
    def new(cls, path: PathOrStr, key: str | None = None) -> PthTensors:
        """Open a checkpoint; with ``key`` the dictionary of that name in it, "state_dict" say.

        Raises ``NotFoundError``, ``IoError``; ``PthError`` for a damaged file, the format of before PyTorch 1.6, a
        reference to anything but tensors and plain values, and a key that is not there.
        """
        return cls(pth.Reader(path, key))

    def tensor_infos(self) -> dict[str, TensorInfo]:
        """What is known of each tensor without reading it. Raises ``PthError`` for a dtype that tensors lack."""
        return {name: _info(self._reader, info) for name, info in self._reader.tensors.items()}

    def names(self) -> list[str]:
        """The tensors' names, in the file's order. Ours."""
        return list(self._reader.tensors)

    def get(self, name: str) -> Tensor | None:
        """One tensor on the CPU, or ``None`` if there is none of that name; no other is read.

        Raises ``PthError`` when the storage lacks it, or for a dtype that tensors do not have.
        """
        if name not in self._reader.tensors:
            return None
        return Tensor._from_array(self._reader.array(name), Device.Cpu)


def read_all(path: PathOrStr) -> list[tuple[str, Tensor]]:
    """All tensors of a checkpoint with their names, on the CPU. Raises as ``PthTensors``.

    candle: ``read_all<P: AsRef<Path>>(path: P) -> Result<Vec<(String, Tensor)>>``
    """
    return read_all_with_key(path, None)


def read_all_with_key(path: PathOrStr, key: str | None) -> list[tuple[str, Tensor]]:
    """All tensors in the dictionary that a checkpoint has under ``key``. Raises as ``PthTensors``.

    candle: ``read_all_with_key<P: AsRef<Path>>(path: P, key: Option<&str>) -> Result<Vec<(String, Tensor)>>``
    """
    arrays = pth.Reader(path, key).arrays()
    return [(name, Tensor._from_array(array, Device.Cpu)) for name, array in arrays]


def read_pth_tensor_info(path: PathOrStr, verbose: bool = False, key: str | None = None) -> list[TensorInfo]:
    """What a checkpoint holds, without reading it; ``verbose`` prints it. Raises as ``PthTensors.tensor_infos``.

    candle: ``read_pth_tensor_info(file: P, verbose: bool, key: Option<&str>) -> Result<Vec<TensorInfo>>``
    """
    infos = list(PthTensors.new(path, key).tensor_infos().values())
    if verbose:
        for info in infos:
            print(f"{shown(info.name, 200)}: {list(info.layout.shape)} {info.dtype}, {shown(info.path, 200)}")
    return infos


def _info(reader: pth.Reader, info: pth.TensorInfo) -> TensorInfo:
    reader.check_kind(info)
    layout = Layout(Shape(info.shape), info.stride, info.start_offset)
    return TensorInfo(info.name, DType.of(pth.DTYPES[info.dtype]), layout, info.path, info.storage_size)

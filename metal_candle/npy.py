"""NumPy's npz files, tensor by tensor. candle: ``candle_core::npy``. Whole files: ``Tensor.read_npy``, ``read_npz``."""

from __future__ import annotations

from os import PathLike

from .device import Device
from .dtype import DType
from .formats import npz
from .shape import Shape
from .tensor import Tensor


class NpzTensors:
    """The arrays of an npz file, read when they are asked for. candle: ``candle_core::npy::NpzTensors``."""

    def __init__(self, reader: npz.Reader) -> None:
        self._reader = reader

    @classmethod
    def new(cls, path: str | PathLike[str]) -> NpzTensors:
        """Open a file. Raises ``NotFoundError``, ``IoError``, and ``NpyError`` for a damaged one."""
        return cls(npz.Reader(path))

    def names(self) -> list[str]:
        """The arrays' names, in the file's order."""
        return self._reader.names

    def get(self, name: str) -> Tensor | None:
        """One array as a tensor on the CPU, or ``None`` if there is none. Raises ``NpyError`` as ``read_npy``."""
        return Tensor._from_array(self._reader.array(name), Device.Cpu) if name in self.names() else None

    def get_shape_and_dtype(self, name: str) -> tuple[Shape, DType]:
        """Shape and dtype of one array, whose elements are not read. Raises ``NpyError``, also if there is none."""
        if name not in self.names():
            raise self._reader.missing(name)
        header = self._reader.header(name)
        return Shape(header.shape), DType.of(header.dtype)

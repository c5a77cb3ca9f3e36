"""Tensors from files, and back: candle's ``read_npy``, ``write_npz``, ``save_safetensors`` …

The codecs are imported by the methods that use them, so that a program without files does not wait for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Protocol, TypeVar

import mlx.core as mx

from ..device import Device, DeviceLike
from ..error import Error, NpyError
from .base import TensorBase
from .methods import TensorMethods

F = TypeVar("F", bound="FileMethods")


class BytesWriter(Protocol):
    """What takes bytes: a file open for writing, say."""

    def write(self, data: memoryview, /) -> object:
        """Take the bytes."""


class FileMethods(TensorMethods):
    """Constructors from files, which give tensors of the class they are called on, and writing.

    npy and npz have no BF16: ``NpyError`` then. What is read is on the CPU, as in candle.
    """

    __slots__ = ()

    @classmethod
    def _from_array(cls: type[F], array: mx.array, device: DeviceLike) -> F:
        raise AssertionError("a tensor class defines _from_array")

    # --- constructors -------------------------------------------------------------------------

    @classmethod
    def read_npy(cls: type[F], path: str | PathLike[str]) -> F:
        """The array of an npy file, booleans as U8.

        Raises ``NotFoundError``, ``IoError``; ``NpyError`` for a damaged file, Fortran order, big-endian numbers and
        dtypes that tensors do not have. Unlike candle it refuses bytes after the last element.

        candle: ``Tensor::read_npy<T: AsRef<Path>>(path: T) -> Result<Self>``
        """
        from ..formats import npy

        return cls._from_array(npy.read(path), Device.Cpu)

    @classmethod
    def read_npz(cls: type[F], path: str | PathLike[str]) -> list[tuple[str, F]]:
        """The arrays of an npz file with their names, in the file's order. Raises as ``read_npy``.

        candle: ``Tensor::read_npz<T: AsRef<Path>>(path: T) -> Result<Vec<(String, Self)>>``
        """
        from ..formats import npz

        reader = npz.Reader(path)
        return [(name, cls._from_array(reader.array(name), Device.Cpu)) for name in reader.names]

    @classmethod
    def read_npz_by_name(cls: type[F], path: str | PathLike[str], names: Sequence[str]) -> list[F]:
        """The named arrays of an npz file, and only those. Raises as ``read_npy``, and ``NpyError`` for a name that
        is not there.

        candle: ``Tensor::read_npz_by_name<T: AsRef<Path>>(path: T, names: &[&str]) -> Result<Vec<Self>>``
        """
        from ..formats import npz

        reader = npz.Reader(path)
        for name in names:
            if name not in reader.names:
                raise NpyError(path, f"has no array {name}; has {', '.join(reader.names[:10])}")
        return [cls._from_array(reader.array(name), Device.Cpu) for name in names]

    # --- writing ------------------------------------------------------------------------------

    @staticmethod
    def write_npz(ts: Iterable[tuple[str, TensorBase]], path: str | PathLike[str]) -> None:
        """Write named tensors as an npz file, in this order and not compressed, whole or not at all.

        Raises ``NpyError`` for BF16 and for two tensors of one name, ``CheckpointError.SaveFailed`` (an ``OSError``)
        when the file cannot be written.

        candle: ``Tensor::write_npz<S: AsRef<str>, T: AsRef<Path>>(ts: &[(S, T)], path: T) -> Result<()>``
        """
        from ..formats import npz

        pairs = list(ts)
        for name, tensor in pairs:
            if not isinstance(name, str) or not isinstance(tensor, TensorBase):
                kinds = f"({type(name).__name__}, {type(tensor).__name__})"
                raise Error(f"write_npz: got {kinds}; takes pairs of a name and a tensor")
        npz.save(path, [(name, tensor.mlx()) for name, tensor in pairs])

    def write_npy(self, path: str | PathLike[str]) -> None:
        """Write an npy file, whole or not at all. Raises as ``write_npz``.

        candle: ``Tensor::write_npy<T: AsRef<Path>>(&self, path: T) -> Result<()>``
        """
        from ..formats import npy

        npy.save(path, self.mlx())

    def write_bytes(self, f: BytesWriter | str | PathLike[str]) -> None:
        """Write the elements as little-endian bytes in C order, to an open binary file or, ours, to a path.

        Raises ``IoError`` when the file does not take them; a path is written whole or not at all, and
        ``CheckpointError.SaveFailed`` raised.

        candle: ``Tensor::write_bytes<W: std::io::Write>(&self, f: &mut W) -> Result<()>``
        """
        from ..files import write_atomically
        from ..formats.raw import to_bytes
        from ..formats.reading import io_errors

        data = to_bytes(self.mlx())
        if isinstance(f, (str, PathLike)):
            with write_atomically(f) as beside:
                beside.write_bytes(data)
        else:
            with io_errors(getattr(f, "name", type(f).__name__)):
                f.write(data)

    def save_safetensors(self, name: str, path: str | PathLike[str]) -> None:
        """Write a safetensors file of this one tensor under ``name``, whole or not at all.

        Raises ``CheckpointError.SaveFailed`` when the file cannot be written, ``SafeTensorError`` for a name that
        the format cannot hold.

        candle: ``Tensor::save_safetensors<P: AsRef<Path>>(&self, name: &str, filename: P) -> Result<()>``
        """
        from ..formats import safetensors

        safetensors.save(path, {name: self.mlx()})

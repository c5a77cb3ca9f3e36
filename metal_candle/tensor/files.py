"""Tensors from files, and back: candle's ``read_npy``, ``write_npz``, ``save_safetensors`` …

The codecs are imported by the methods that use them, so that a program without files does not wait for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TypeVar

import mlx.core as mx

from ..device import Device, DeviceLike
from ..error import Error
from ..error.text import shown
from ..files import BytesWriter, write_all, write_atomically
from .base import TensorBase
from .methods import TensorMethods

F = TypeVar("F", bound="FileMethods")


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

        if isinstance(names, (str, bytes)) or not all(isinstance(name, str) for name in names):
            raise Error(f"read_npz_by_name: got {shown(repr(names))}; takes a list of names")
        reader = npz.Reader(path)
        for name in names:
            if name not in reader.names:
                raise reader.missing(name)
        return [cls._from_array(reader.array(name), Device.Cpu) for name in names]

    # --- writing ------------------------------------------------------------------------------

    @staticmethod
    def write_npz(ts: Iterable[tuple[str, TensorBase]] | Mapping[str, TensorBase], path: str | PathLike[str]) -> None:
        """Write named tensors as an npz file, in this order and not compressed, whole or not at all.

        Ours also takes a dict. Raises ``Error`` for what are no named tensors, ``NpyError`` for BF16 and for two
        tensors of one name, ``CheckpointError.SaveFailed`` (an ``OSError``) when the file cannot be written.

        candle: ``Tensor::write_npz<S: AsRef<str>, T: AsRef<Path>>(ts: &[(S, T)], path: T) -> Result<()>``
        """
        from ..formats import npz

        if isinstance(ts, (str, bytes, PathLike, TensorBase)) or not isinstance(ts, Iterable):
            raise Error(f"write_npz: got {type(ts).__name__}; takes (tensors, path), pairs of a name and a tensor")
        pairs = list(ts.items() if isinstance(ts, Mapping) else ts)
        for pair in pairs:
            kinds = [type(part).__name__ for part in pair] if isinstance(pair, (tuple, list)) else [type(pair).__name__]
            if len(kinds) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], TensorBase):
                got = shown(", ".join(kinds))
                raise Error(f"write_npz: got ({got}); takes pairs of a name and a tensor")
        npz.save(path, [(name, tensor.mlx()) for name, tensor in pairs])

    def write_npy(self, path: str | PathLike[str]) -> None:
        """Write an npy file, whole or not at all. Raises as ``write_npz``.

        candle: ``Tensor::write_npy<T: AsRef<Path>>(&self, path: T) -> Result<()>``
        """
        from ..formats import npy

        npy.save(path, self.mlx())

    def write_bytes(self, f: BytesWriter | str | PathLike[str]) -> None:
        """Write the elements as little-endian bytes in C order, to an open binary file or, ours, to a path.

        Raises ``IoError`` when the file does not take them all; a path is written whole or not at all, and
        ``CheckpointError.SaveFailed`` raised.

        candle: ``Tensor::write_bytes<W: std::io::Write>(&self, f: &mut W) -> Result<()>``
        """
        from ..formats.raw import to_bytes

        data = to_bytes(self.mlx())
        if isinstance(f, (str, PathLike)):
            with write_atomically(f) as beside:
                beside.write_bytes(data)
        elif hasattr(f, "write"):
            write_all(f, data, getattr(f, "name", type(f).__name__))
        else:
            raise Error(f"write_bytes: got {type(f).__name__}; takes a path or a binary file")

    def save_safetensors(self, name: str, path: str | PathLike[str]) -> None:
        """Write a safetensors file of this one tensor under ``name``, whole or not at all.

        Raises ``CheckpointError.SaveFailed`` when the file cannot be written, ``SafeTensorError`` for a name that
        the format cannot hold.

        candle: ``Tensor::save_safetensors<P: AsRef<Path>>(&self, name: &str, filename: P) -> Result<()>``
        """
        from ..formats import safetensors

        safetensors.save(path, {name: self.mlx()})

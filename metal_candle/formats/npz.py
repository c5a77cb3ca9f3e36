"""Named arrays in NumPy's ``npz`` format: a zip archive of ``npy`` files."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from os import PathLike

import mlx.core as mx

from ..error import NpyError
from ..files import write_atomically
from . import npy
from .reading import shown
from .zip_archive import ZipArchive

_SUFFIX = ".npy"
# The earliest date of the format: equal arrays give equal files.
_DATE = (1980, 1, 1, 0, 0, 0)


class Reader:
    """The arrays of one file, by name; none is read before it is asked for.

    Raises ``NotFoundError``, ``IoError``, and ``NpyError`` for a damaged file.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = shown(path, 300)
        self._archive = ZipArchive(path, lambda reason: NpyError(path, reason))
        self._entries = {entry.removesuffix(_SUFFIX): entry for entry in self._archive.names}
        if len(self._entries) < len(self._archive.names):
            raise NpyError(path, "two arrays have the same name")

    @property
    def names(self) -> list[str]:
        """The arrays' names, in the file's order."""
        return list(self._entries)

    def array(self, name: str) -> mx.array:
        """One array. Raises ``NpyError`` as ``npy.read``."""
        return npy.parse(self._archive.read(self._entries[name]), self._source(name))

    def header(self, name: str) -> npy.Header:
        """Dtype and shape of one array, whose elements are not read. Raises ``NpyError`` as ``npy.read``."""
        entry = self._entries[name]

        def read(begin: int, end: int) -> bytes:
            return self._archive.read_start(entry, end)[begin:]

        return npy.read_header(read, self._archive.size(entry), self._source(name))

    def missing(self, name: object) -> NpyError:
        """The error of a name that is not there."""
        there = ", ".join(shown(other) for other in self.names[:10])
        return NpyError(self._path, f"has no array {shown(name)}; has {there}")

    def _source(self, name: str) -> str:
        return f"{self._path}: {shown(name)}"


def save(path: str | PathLike[str], arrays: Sequence[tuple[str, mx.array]]) -> None:
    """Write named arrays in this order, not compressed, whole or not at all; NumPy reads it.

    Raises ``NpyError`` for bfloat16 and for names that the format cannot hold or that come twice, and
    ``CheckpointError.SaveFailed`` when the file cannot be written; an old file is then unchanged.
    """
    headers = [npy.encode_header(array, f"{shown(path, 300)}: {shown(name)}") for name, array in arrays]
    names = [_checked(name, path) for name, _ in arrays]
    if len(set(names)) < len(names):
        raise NpyError(path, "two arrays have the same name")
    with write_atomically(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
        for name, header, (_, array) in zip(names, headers, arrays):
            # An entry's size is written before it is known: room for one of more than 4 GiB.
            with archive.open(zipfile.ZipInfo(name + _SUFFIX, _DATE), "w", force_zip64=True) as file:
                npy.write(file, header, array)  # type: ignore[arg-type]


def _checked(name: str, path: str | PathLike[str]) -> str:
    try:
        long = len(name.encode("utf-8")) > 60_000
    except UnicodeEncodeError as error:
        raise NpyError(path, f"the name {shown(name)} is no Unicode text") from error
    if long or "\0" in name:
        raise NpyError(path, f"cannot hold the name {shown(name)}; takes at most 60000 bytes, none of them 0")
    return name

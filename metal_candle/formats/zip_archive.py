"""Zip archives that hold arrays: what an entry claims is checked against the file before it is believed."""

from __future__ import annotations

import errno
import os
import struct
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from ..error import Error
from .reading import io_errors, open_regular, shown

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Deflate makes at most 1032 bytes of one.
_MOST_DEFLATED = 1032

# What zipfile raises for damaged archives, encrypted entries and methods it does not know.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class ZipArchive:
    """An archive open for reading; ``names`` are in the file's order. Entries are stored or deflated.

    ``invalid`` makes the error from one line. Raises it for damage, and ``NotFoundError`` and ``IoError``.
    """

    def __init__(self, path: str | PathLike[str], invalid: Callable[[str], Error]) -> None:
        self.path, self._invalid = Path(path), invalid
        with io_errors(self.path):
            file = os.fdopen(open_regular(self.path), "rb")
            weakref.finalize(self, file.close)
            size = os.fstat(file.fileno()).st_size
            with self._damage("no zip archive, or a damaged one"):
                self._archive = zipfile.ZipFile(file)
        infos = self._archive.infolist()
        self._entries = {info.filename: info for info in infos}
        if len(self._entries) < len(infos):
            raise invalid("two entries have the same name")
        # Overlapping entries would let a small file hold any amount.
        if sum(info.compress_size for info in infos) > size:
            raise invalid(f"claims more than its {size} bytes")

    @property
    def names(self) -> list[str]:
        """The entries' names, in the file's order."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def size(self, name: str) -> int:
        """Bytes of an entry, which are possible for what the archive holds of it."""
        info = self._entries[name]
        if info.compress_type not in _METHODS:
            raise self._invalid(f"{shown(name)}: compressed in another way than stored or deflated")
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        if info.file_size > info.compress_size * (_MOST_DEFLATED if deflated else 1):
            raise self._invalid(f"{shown(name)}: claims {info.file_size} bytes in {info.compress_size}")
        return info.file_size

    def read(self, name: str) -> bytes:
        """The bytes of an entry, whose checksum is right."""
        return self._read(name, self.size(name))

    def read_start(self, name: str, length: int) -> bytes:
        """The first ``length`` bytes of an entry, or all of a shorter one; of a part the checksum is not known."""
        return self._read(name, min(length, self.size(name)))

    def _read(self, name: str, length: int) -> bytes:
        info = self._entries[name]
        with io_errors(self.path), self._damage(shown(name)), self._archive.open(info) as stream:
            data = stream.read(length)
        if len(data) != length:
            raise self._invalid(f"{shown(name)}: truncated at {len(data)} bytes of {length}")
        return data

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        try:
            yield
        except Error:
            raise
        except OSError as error:
            if error.errno != errno.EINVAL:  # which a seek to before the file's start raises
                raise
            raise self._invalid(f"{what}: an offset leaves the file") from error
        except _DAMAGE as error:
            raise self._invalid(f"{what}: {shown(str(error) or type(error).__name__, 300)}") from error

"""The zip archive of a PyTorch checkpoint: parts of its entries, and how large a packed entry may become."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from os import PathLike

from ..error import Error
from .reading import OpenFile
from .zip_archive import ZipArchive

_LOCAL_HEADER = struct.Struct("<4s22xHH")


class PthArchive(ZipArchive):
    """A ``ZipArchive`` whose stored entries are read in parts. PyTorch stores them all; deflated copies are read."""

    def __init__(self, path: str | PathLike[str], invalid: Callable[[str], Error]) -> None:
        self._file = OpenFile(path)
        super().__init__(path, invalid)

    def bounded_size(self, name: str, ratio: int) -> int:
        """An entry's size, but at most ``ratio`` times the bytes that it takes in the file."""
        return min(self.size(name), ratio * self._entries[name].compress_size)

    def read_part(self, name: str, begin: int, end: int) -> bytes | bytearray:
        """The bytes of an entry from ``begin`` to ``end``, which are in it.

        No others are read of a stored entry. Of a part the checksum is not known; of a whole entry it is right.
        """
        size, info = self.size(name), self._entries[name]
        if (begin, end) == (0, size):
            return self.read(name)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:  # 1: encrypted, which is refused there
            return self.read_start(name, end)[begin:]
        header = self._file.read(max(info.header_offset, 0), info.header_offset + _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise self._invalid(f"{name}: its offset leads to no entry")
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        data = self._file.read(start + begin, start + end)
        if len(data) != end - begin:
            raise self._invalid(f"{name}: truncated at {len(data)} bytes of {end - begin}")
        return data

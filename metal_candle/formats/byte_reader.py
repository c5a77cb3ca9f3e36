"""Reading a binary file without ever leaving it: a source, its size, and a position that is checked."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeAlias

from ..error import Error, IoError, ModelError
from .reading import io_errors, open_regular, shown

_REASON_LIMIT = 1000  # characters; names in it are shortened before

Source: TypeAlias = "str | os.PathLike[str] | IO[bytes] | bytes | bytearray | memoryview"
"""A path, a binary file that can seek, or the bytes themselves."""


def invalid(name: str, reason: str) -> ModelError:
    """The error of a damaged file: its name, what is wrong; on one line, whatever names the file holds."""
    return ModelError.InvalidFormat(reason=f"{name}: {shown(reason, _REASON_LIMIT)}")


@contextmanager
def opened(source: Source) -> Iterator[ByteReader]:
    """A reader at the start of a source, which is closed afterwards if it was opened here.

    It is read, not mapped: a mapped file that somebody cuts short would end the process. Raises
    ``NotFoundError``, ``IoError`` for what cannot be read, and ``ModelError.InvalidFormat`` for what is empty.
    """
    name = name_of(source)
    with io_errors(name):
        if isinstance(source, (str, os.PathLike)):
            with os.fdopen(open_regular(source), "rb") as file:
                yield ByteReader(file, name)
        elif isinstance(source, (bytes, bytearray, memoryview)):
            yield ByteReader(io.BytesIO(source), name)
        elif hasattr(source, "read") and hasattr(source, "seek"):
            yield ByteReader(source, name)
        else:
            raise Error(f"read: got {type(source).__name__}; takes a path, a binary file or bytes")


def name_of(source: Source) -> str:
    """What a source is called in errors."""
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    return str(getattr(source, "name", f"<{type(source).__name__}>"))


class ByteReader:
    """A position in a file; every read checks that it stays inside. Numbers are little-endian."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.file, self.name, self.position = file, name, 0
        if getattr(file, "closed", False):
            raise IoError(name, "the file is closed")
        if isinstance(file, io.TextIOBase):
            raise IoError(name, "the file is open for text; takes one open for bytes")
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if not self.size:
            raise self.invalid("the file is empty; fetch it again")

    def invalid(self, reason: str) -> ModelError:
        """An error about this file."""
        return invalid(self.name, reason)

    def move(self, position: int) -> None:
        """Read on from another place."""
        self.position = self.file.seek(position)

    def take(self, count: int, what: str = "its header") -> bytes:
        """The next bytes. Raises ``ModelError.InvalidFormat`` where the file ends before."""
        taken = b""
        if 0 <= count <= self.size - self.position:
            taken = self._read(count)
        if len(taken) < count or count < 0:
            raise self.invalid(f"truncated inside {what} at {self.size} bytes; fetch the file again")
        self.position += count
        return taken

    def _read(self, count: int) -> bytes:
        taken = self.file.read(count)
        parts = [taken]
        while taken and (count := count - len(taken)):  # a file without buffer gives what it likes
            taken = self.file.read(count)
            parts.append(taken)
        return parts[0] if len(parts) == 1 else b"".join(part for part in parts if part)

    def number(self, code: str) -> Any:
        """The next number, of a ``struct`` code."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def numbers(self, code: str, count: int) -> list[Any]:
        """The next so many numbers."""
        layout = f"<{count}{code}"
        return list(struct.unpack(layout, self.take(struct.calcsize(layout))))

    def text(self, length: int) -> str:
        """The next so many bytes as UTF-8."""
        taken = self.take(length)
        try:
            return taken.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.invalid(f"text at byte {self.position - len(taken)} is not UTF-8") from error

    def count(self, code: str, least_bytes: int, what: str) -> int:
        """A number of things of at least so many bytes each: more cannot be in the rest of the file."""
        count: int = self.number(code)
        if not 0 <= count * least_bytes <= self.size - self.position:
            raise self.invalid(f"claims {count} {what}, more than its {self.size} bytes hold; truncated?")
        return count

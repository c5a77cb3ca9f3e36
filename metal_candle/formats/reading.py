"""Files opened and read with errors of ours: missing, unreadable, or shorter than they were."""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from ..error import Error, IoError, NotFoundError
from ..error.text import shown as shown  # what error messages show of a file's names
from ..files import is_bad_name

_STEP = 1 << 30
"""Bytes of one read: macOS takes less than 2^31."""


@contextmanager
def io_errors(path: object) -> Iterator[None]:
    """Raise ``NotFoundError`` and ``IoError``, naming the file, for an ``OSError`` in the block.

    Also for a name that no file can have: with a 0 in it, or with half of a surrogate pair.
    """
    try:
        yield
    except Error:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(path) from error
    except OSError as error:
        raise IoError(path, error.strerror or str(error)) from error
    except ValueError as error:
        if not is_bad_name(path):
            raise
        raise IoError(path, "no file can have this name") from error


def open_regular(path: str | PathLike[str]) -> int:
    """The descriptor of a file opened for reading, which the caller closes (``os.fdopen`` makes a file of it).

    Raises ``NotFoundError``, and ``IoError`` for what cannot be opened or is no regular file: to open a FIFO waits
    for a writer, and a device has no end.
    """
    with io_errors(path):
        # Without O_NONBLOCK, opening a FIFO would wait before it can be refused. Regular files do not care.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise IoError(path, "is a folder; takes a file")
            if not stat.S_ISREG(mode):
                raise IoError(path, "is no regular file; takes a file with an end")
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def is_file(path: Path) -> bool:
    """Whether a file of that name is there. Raises ``IoError`` when that cannot be told: a folder without access."""
    with io_errors(path):
        return path.is_file()


def is_folder(path: Path) -> bool:
    """Whether a folder of that name is there. Raises ``IoError`` when that cannot be told."""
    with io_errors(path):
        return path.is_dir()


class OpenFile:
    """A file held open for reading at any place, by any thread; closed when nobody holds this any more.

    It stays what it was when another file takes its name. It is read, not mapped: a mapped file that somebody
    cuts short would end the process.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        with io_errors(self.path):
            self._descriptor = open_regular(self.path)
            weakref.finalize(self, os.close, self._descriptor)
            self.size = os.fstat(self._descriptor).st_size

    def read(self, begin: int, end: int) -> bytearray:
        """The bytes from ``begin`` to ``end``; fewer where the file ends before. Raises ``IoError``."""
        data = bytearray(max(0, min(end, self.size) - begin))
        filled = 0
        with io_errors(self.path), memoryview(data) as view:
            while filled < len(data):
                step = os.preadv(self._descriptor, [view[filled : filled + _STEP]], begin + filled)
                if not step:
                    break
                filled += step
        del data[filled:]
        return data

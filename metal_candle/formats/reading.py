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

# Bytes of one read: small beside a large tensor, so that reading it takes little more memory than it has.
_STEP = 1 << 26


@contextmanager
def io_errors(path: object) -> Iterator[None]:
    """Raise ``NotFoundError`` and ``IoError``, naming the file, for an ``OSError`` in the block."""
    try:
        yield
    except Error:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(path) from error
    except OSError as error:
        raise IoError(path, error.strerror or str(error)) from error


class OpenFile:
    """A file held open for reading at any place, by any thread; closed when nobody holds this any more.

    It stays what it was when another file takes its name. It is read, not mapped: a mapped file that somebody
    cuts short would end the process.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        with io_errors(self.path):
            self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            weakref.finalize(self, os.close, self._descriptor)
            status = os.fstat(self._descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IoError(self.path, "is a folder; takes a file")
        self.size = status.st_size

    def read(self, begin: int, end: int) -> bytearray:
        """The bytes from ``begin`` to ``end``; fewer where the file ends before. Raises ``IoError``."""
        data = bytearray(max(0, min(end, self.size) - begin))
        filled = 0
        with io_errors(self.path):
            while filled < len(data):
                step = os.pread(self._descriptor, min(len(data) - filled, _STEP), begin + filled)
                if not step:
                    break
                data[filled : filled + len(step)] = step
                filled += len(step)
        del data[filled:]
        return data

"""Files written whole or not at all, JSON read with errors that say where, and a lock between processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from .error import CheckpointError, Error, IoError


@contextmanager
def write_atomically(path: str | PathLike[str]) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; when the block ends well, it is renamed over ``path``.

    Missing folders are created. When the block fails, the new file is removed and an old ``path`` is
    untouched. Raises ``CheckpointError.SaveFailed`` for every ``OSError``: no space, no permission.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        _make_folder(path.parent)
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, Error):
            reason = error.strerror or str(error)
            raise CheckpointError.SaveFailed(reason=f"{path}: {reason}; what was there is unchanged") from error
        raise


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # which says too little
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder") from error


def is_bad_name(path: object) -> bool:
    """Whether no file can have the name: Python raises ``ValueError`` for a 0 in it and half of a surrogate pair."""
    text = os.fspath(path) if isinstance(path, PathLike) else path
    if isinstance(text, bytes):
        return b"\0" in text
    if not isinstance(text, str):
        return False
    try:
        return b"\0" in os.fsencode(text)
    except UnicodeEncodeError:
        return True


class BytesWriter(Protocol):
    """What takes bytes: a file open for writing, say."""

    def write(self, data: memoryview, /) -> object:
        """Take the bytes, or the first of them, and give their count."""


def write_all(file: BytesWriter, data: bytes | bytearray | memoryview, name: object) -> None:
    """Write all bytes of ``data``: a file without buffer, a pipe say, takes them in parts.

    Raises ``IoError``, naming ``name``, when the file takes no more (a non-blocking one says so with ``None``, or 0),
    is closed or takes text, and for an ``OSError``.
    """
    whole = memoryview(data)
    rest = whole.cast("B") if whole.nbytes else memoryview(b"")
    while len(rest):
        try:
            count = file.write(rest)
        except Error:
            raise
        except (OSError, ValueError, TypeError) as error:  # ValueError: closed; TypeError: a file of text
            reason = getattr(error, "strerror", None) or str(error)
            raise IoError(name, reason) from error
        if not isinstance(count, int) or not 0 < count <= len(rest):
            raise IoError(
                name, f"took {count!r} of {len(rest)} bytes; takes a binary file that waits until it can write"
            )
        rest = rest[count:]


def write_text(path: str | PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all. Raises ``CheckpointError.SaveFailed``."""
    with write_atomically(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: str | PathLike[str], value: object) -> None:
    """Write ``value`` as indented JSON, whole or not at all. Raises ``CheckpointError.SaveFailed``."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def parse_json_object(text: str, source: str, invalid: Callable[[str], Error]) -> dict[str, Any]:
    """The JSON object in ``text``; ``invalid`` makes the error from one line that names ``source``."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise invalid(f"{source}: broken JSON at line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise invalid(f"{source}: JSON nested too deeply") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise invalid(f"{source}: {error}") from error
    if not isinstance(value, dict):
        raise invalid(f"{source}: holds a JSON {type(value).__name__}; takes an object {{...}}")
    return value


def read_text(path: str | PathLike[str], invalid: Callable[[str], Error]) -> str:
    """The text of a UTF-8 file; ``invalid`` makes the error from one line that names the file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise invalid(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise invalid(f"{path}: not UTF-8 text at byte {error.start}") from error


def read_json_object(path: str | PathLike[str], invalid: Callable[[str], Error]) -> dict[str, Any]:
    """The JSON object in a file; ``invalid`` makes the error from one line that names the file."""
    return parse_json_object(read_text(path, invalid), str(path), invalid)


@contextmanager
def locked(path: str | PathLike[str]) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes inside the block; waits for it.

    The lock file stays: removing it would let a third process lock another file of the same name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        with suppress(OSError):  # a file system without locks: names are unique and renames atomic anyway
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield

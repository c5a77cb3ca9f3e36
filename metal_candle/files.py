"""Files written whole or not at all, JSON read with errors that say where, and a lock between processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .error import CheckpointError, Error, IoError
from .error.text import shown


@contextmanager
def write_atomically(path: str | PathLike[str]) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; when the block ends well, it is renamed over ``path``.

    Missing folders are created, an old file's permissions are kept, and a symbolic link stays one: what it leads to
    is written. When the block fails, the new file and folders are removed and an old ``path`` is untouched. Raises
    ``CheckpointError.SaveFailed`` for every ``OSError`` (no space, no permission), for a name that no file can have,
    and for a folder, device, FIFO or socket of that name.
    """
    with save_errors(path, "; what was there is unchanged"):
        target = target_of(path)
        with no_new_folders_on_failure(target.path.parent):
            beside = target.create("tmp")
            try:
                yield beside
                target.finish(beside)
                os.replace(beside, target.path)
            except BaseException as error:
                with suppress(OSError):
                    beside.unlink(missing_ok=True)
                # ``write_all`` names the file that it writes.
                if isinstance(error, IoError) and str(error.path) in map(str, (path, target.path, beside)):
                    raise OSError(error.reason) from error
                raise


@contextmanager
def no_new_folders_on_failure(folder: Path) -> Iterator[None]:
    """Where the block fails, remove what it made of ``folder`` and those above it, as far as that is empty."""
    missing = missing_folders(folder)
    try:
        yield
    except BaseException:
        remove_empty(missing)
        raise


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, the innermost first."""
    return [each for each in (folder, *folder.parents) if not os.path.exists(each)]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those that are there and empty."""
    for folder in folders:
        with suppress(OSError, ValueError):  # a name that no folder can have
            folder.rmdir()


@contextmanager
def save_errors(path: object, outcome: str = "") -> Iterator[None]:
    """Raise ``CheckpointError.SaveFailed``, naming the file and ending in ``outcome``, for an ``OSError``."""
    try:
        yield
    except Error:
        raise
    except OSError as error:
        reason = f"{shown(path, 300)}: {shown(error.strerror or error, 500)}{outcome}"
        raise CheckpointError.SaveFailed(reason=reason) from error


class Target(NamedTuple):
    """A file to be written: its path behind symbolic links, and the permissions of the one that is there."""

    path: Path
    mode: int | None

    def beside(self, ending: str) -> Path:
        """A new name in the same folder, so that a rename between the two is one step. It starts with a dot."""
        # A part of the name: all of it and the rest could be longer than a name may be.
        return self.path.with_name(f".{self.path.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.{ending}")

    def create(self, ending: str) -> Path:
        """``beside``, in a folder that is made if it is missing; nobody reads there what the old file hides."""
        beside = self.beside(ending)
        _make_folder(beside.parent)
        if self.mode is not None:
            os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self.mode | stat.S_IWUSR))
        return beside

    def finish(self, beside: Path) -> None:
        """See to it that a written file is on the disk, with the old one's permissions."""
        with beside.open("rb") as written:
            os.fsync(written.fileno())
            if self.mode is not None:
                os.fchmod(written.fileno(), self.mode)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while they wrote left beside their files in a folder."""
    for path in folder.glob(".*.*.*"):
        match = _BESIDE.fullmatch(path.name)
        if match is not None and not _runs(int(match["process"])):
            with suppress(OSError):
                path.unlink()


_BESIDE = re.compile(r"\..+\.(?P<process>\d+)\.[0-9a-f]{8}\.(tmp|old)")
"""The names that ``Target.beside`` gives, and those of old files that make room for several new ones."""


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def target_of(path: str | PathLike[str]) -> Target:
    """Where to write so that ``path`` is written. Raises ``CheckpointError.SaveFailed`` as ``write_atomically``."""
    if not isinstance(path, (str, PathLike)):
        raise CheckpointError.SaveFailed(reason=f"got {type(path).__name__}; takes a path")
    text = os.fspath(path)
    if not text or is_bad_name(text):
        raise CheckpointError.SaveFailed(reason=f"{shown(repr(text), 300)}: no file can have this name")
    with save_errors(path, "; what was there is unchanged"):
        real = Path(os.path.realpath(text))
        try:
            mode = real.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):  # which making the folder explains
            return Target(real, None)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise FileExistsError(errno.EEXIST, "is a device, FIFO or socket; takes a file")
        return Target(real, stat.S_IMODE(mode))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # which says too little
        raise NotADirectoryError(errno.ENOTDIR, f"{shown(folder, 300)} is a file, not a folder") from error


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


def parse_json_object(text: str, source: str, invalid: Callable[[str], Error], unique: bool = False) -> dict[str, Any]:
    """The JSON object in ``text``; ``invalid`` makes the error from one line that names ``source``.

    ``unique`` refuses a key that an object, at any depth, has twice; otherwise the last one counts.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys if unique else None)
    except json.JSONDecodeError as error:
        raise invalid(f"{source}: broken JSON at line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise invalid(f"{source}: JSON nested too deeply") from error
    except ValueError as error:  # an integer of more digits than Python converts, or a key that is there twice
        raise invalid(f"{source}: {error}") from error
    if not isinstance(value, dict):
        raise invalid(f"{source}: holds a JSON {type(value).__name__}; takes an object {{...}}")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"has {shown(twice)} twice")
    return value


def read_text(path: str | PathLike[str], invalid: Callable[[str], Error]) -> str:
    """The text of a UTF-8 file; ``invalid`` makes the error from one line that names the file."""
    if is_bad_name(path):
        raise invalid(f"{shown(path, 300)}: no file can have this name")
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise invalid(f"{shown(path, 300)}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise invalid(f"{shown(path, 300)}: not UTF-8 text at byte {error.start}") from error


def read_json_object(path: str | PathLike[str], invalid: Callable[[str], Error]) -> dict[str, Any]:
    """The JSON object in a file; ``invalid`` makes the error from one line that names the file."""
    return parse_json_object(read_text(path, invalid), shown(path, 300), invalid)


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

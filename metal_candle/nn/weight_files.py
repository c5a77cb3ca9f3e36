"""The safetensors files of a model, opened: single files, shards, folders and indexes."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Union

from ..error import ArgumentTypeError, ArgumentValueError
from ..error.text import described
from ..formats import safetensors as one_file
from ..formats import sharded
from ..formats.reading import is_folder
from ..safetensors import SliceSafetensors
from .stored import SafeTensorWithRouting

PathOrStr = Union[str, PathLike[str]]
Paths = Union[PathOrStr, Iterable[PathOrStr]]


def open_weights(op: str, paths: Paths) -> SafeTensorWithRouting:
    """The tensors of safetensors files, whose headers are read; of one name the last file's is taken.

    A folder stands for its ``model.safetensors`` or the shards of its index, an ``.index.json`` for the files it
    names; these give the tensors that the index puts there. Raises ``NotFoundError``, ``IoError``,
    ``SafeTensorError`` for a damaged file or index, ``ArgumentTypeError``, and ``ArgumentValueError`` for no path.
    """
    if isinstance(paths, (bytes, bytearray)) or not isinstance(paths, (str, PathLike, Iterable)):
        raise ArgumentTypeError(f"{op}: got {described(paths)}; takes a list of paths, or one")
    listed = [paths] if isinstance(paths, (str, PathLike)) else list(paths)
    if not listed:
        raise ArgumentValueError(f"{op}: got no paths; takes one at least")
    readers: list[one_file.Reader] = []
    routing: dict[str, int] = {}
    for path in listed:
        if not isinstance(path, (str, PathLike)):
            raise ArgumentTypeError(f"{op}: got {described(path)} among the paths; takes str or Path")
        for reader, names in _files(Path(path)):
            routing |= dict.fromkeys(names, len(readers))
            readers.append(reader)
    return SafeTensorWithRouting([SliceSafetensors([reader]) for reader in readers], routing)


def _files(path: Path) -> list[tuple[one_file.Reader, list[str]]]:
    """The files that a path stands for, and the names of the tensors taken from each."""
    index = None
    if is_folder(path):
        files = sharded.find_files(path)
        if files[0].name == sharded.WHOLE:
            path = files[0]
        else:
            index = path / sharded.INDEX
    elif path.name.endswith(".json"):
        index = path
    if index is None:
        reader = one_file.Reader(path)
        return [(reader, list(reader.header.tensors))]
    readers = {file.name: one_file.Reader(file) for file in sharded.indexed_files(index)}
    sharded.check_index(index, {name: reader.header for name, reader in readers.items()})
    weight_map = sharded.weight_map(index)
    return [(reader, [name for name, at in weight_map.items() if at == file]) for file, reader in readers.items()]

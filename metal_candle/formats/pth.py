"""PyTorch checkpoints: the zip files that ``torch.save`` writes, read without running anything from them.

Format: a zip archive of ``NAME/data.pkl``, which describes the tensors, and the bytes of a storage in each
``NAME/data/KEY``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..error import PthError
from .pth_pickle import interpret
from .pth_records import Pairs, TensorRecord
from .raw import DIM_LIMIT, element_count, from_bytes, numpy_dtype
from .reading import io_errors
from .zip_archive import ZipArchive

DTYPES = {
    "float64": mx.float64,
    "float32": mx.float32,
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
    "int64": mx.int64,
    "int32": mx.int32,
    "int16": mx.int16,
    "uint32": mx.uint32,
    "uint8": mx.uint8,
    "bool": mx.uint8,
}
"""PyTorch's dtypes that are read; booleans as uint8."""

PICKLE_LIMIT = 100_000_000
"""Longest description in bytes: that of a million tensors."""

DEPTH_LIMIT = 64
"""How deep dictionaries and lists may be nested."""

SHARED_LIMIT = 100_000
"""Most values looked at beyond one for each byte of the description, which can name one dictionary many times."""

REPEAT_LIMIT = 1 << 26
"""Most elements of a tensor that repeats those of its storage, as ``expand`` makes them; others have no limit."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint: its name, dtype as PyTorch names it, and place in its storage, in elements."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start_offset: int
    path: str
    storage_size: int

    def byte_count(self) -> int:
        """Bytes of its elements, each where it is repeated counted again."""
        return element_count(self.shape, DIM_LIMIT**2) * DTYPES[self.dtype].size


class Reader:
    """The tensors of one checkpoint, by dotted name; ``key`` chooses a dictionary in it, "state_dict" say.

    Raises ``NotFoundError``, ``IoError``, and ``PthError`` for a damaged file, one in the format of before
    PyTorch 1.6, big-endian numbers, a description that refers to anything but tensors and plain values, and a key
    that is not there.
    """

    def __init__(self, path: str | PathLike[str], key: str | None = None) -> None:
        self.path = Path(path)
        _check_kind(self.path)
        self._archive = ZipArchive(path, self._invalid)
        found = [name for name in self._archive.names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise self._invalid("no PyTorch checkpoint: a zip archive without a data.pkl")
        self._folder = found[0].rpartition("/")[0]
        order = f"{self._folder}/byteorder"
        if order in self._archive and self._archive.read_start(order, 16) != b"little":
            raise self._invalid("holds big-endian numbers; takes little-endian ones")
        if self._archive.size(found[0]) > PICKLE_LIMIT:
            raise self._invalid(f"claims a description of {self._archive.size(found[0])} bytes")
        description = self._archive.read(found[0])
        root = interpret(description, str(self.path))
        self._most = SHARED_LIMIT + len(description)
        self.tensors = {info.name: info for info in self._infos(root if key is None else self._chosen(root, key))}

    def array(self, name: str) -> mx.array:
        """One tensor. Raises ``PthError`` when its storage lacks it, or for a dtype that is not read."""
        info = self.tensors[name]
        self._check(info)
        return self._array(info, self._storage(info))

    def arrays(self) -> Iterator[tuple[str, mx.array]]:
        """All tensors in the file's order; a storage that several share is read once."""
        uses = Counter(info.path for info in self.tensors.values())
        storages: dict[str, bytes] = {}
        for name, info in self.tensors.items():
            self._check(info)
            if info.path not in storages:
                storages[info.path] = self._storage(info)
            uses[info.path] -= 1
            data = storages[info.path] if uses[info.path] else storages.pop(info.path)
            yield name, self._array(info, data)

    def _invalid(self, reason: str) -> PthError:
        return PthError(self.path, reason)

    # --- what the description holds -----------------------------------------------------------

    def _chosen(self, root: Any, key: str) -> Any:
        entries = dict(_entries(root)) if isinstance(root, Pairs) else {}
        if key not in entries:
            raise self._invalid(f"has no key {key!r}; has {', '.join(map(str, list(entries)[:10])) or 'no keys'}")
        return entries[key]

    def _infos(self, root: Any) -> Iterator[TensorInfo]:
        """The tensors below a value, named by the keys that lead there, without recursion."""
        names: set[str] = set()
        looked_at = 0
        holders = (TensorRecord, Pairs, list, tuple)
        waiting: list[tuple[tuple[str, ...], Any]] = [((), root)]
        while waiting:
            path, value = waiting.pop()
            if isinstance(value, TensorRecord):
                name = ".".join(path)
                if name in names:
                    raise self._invalid(f"two tensors have the name {name}")
                names.add(name)
                yield self._info(name, value)
            elif isinstance(value, (Pairs, list, tuple)):
                if len(path) == DEPTH_LIMIT:
                    raise self._invalid(f"values are nested deeper than {DEPTH_LIMIT}, or hold themselves")
                looked_at += len(value.items if isinstance(value, Pairs) else value)
                if looked_at > self._most:
                    raise self._invalid(f"names the same values again and again, more than {self._most} in all")
                parts = _entries(value) if isinstance(value, Pairs) else enumerate(value)
                below = [((*path, str(key)), part) for key, part in parts if isinstance(part, holders)]
                waiting.extend(reversed(below))

    def _info(self, name: str, tensor: TensorRecord) -> TensorInfo:
        storage = tensor.storage
        place = f"{self._folder}/data/{storage.key}"
        return TensorInfo(name, tensor.dtype, tensor.shape, tensor.stride, tensor.offset, place, storage.count)

    # --- elements -----------------------------------------------------------------------------

    def _check(self, info: TensorInfo) -> None:
        """Raise ``PthError`` unless all elements are in the storage, and the storage in the file."""
        if info.dtype not in DTYPES:
            raise self._invalid(f"tensor {info.name} is {info.dtype}; takes {', '.join(DTYPES)}")
        if max(info.shape, default=0) > DIM_LIMIT:
            raise self._invalid(f"tensor {info.name}: shape {info.shape}; takes sizes below 2^31")
        if info.path not in self._archive:
            raise self._invalid(f"tensor {info.name}: the storage {info.path} is not there")
        held = self._archive.size(info.path) // DTYPES[info.dtype].size
        if 0 in info.shape:
            return
        last = info.start_offset + sum((size - 1) * step for size, step in zip(info.shape, info.stride))
        if last >= held:
            raise self._invalid(f"tensor {info.name} needs {last + 1} elements, its storage has {held}")
        limit = max(held, REPEAT_LIMIT)
        if element_count(info.shape, limit) > limit:
            raise self._invalid(f"tensor {info.name} of shape {info.shape} repeats {held} elements too often")

    def _storage(self, info: TensorInfo) -> bytes:
        return self._archive.read(info.path)

    def _array(self, info: TensorInfo, storage: bytes) -> mx.array:
        dtype = DTYPES[info.dtype]
        if 0 in info.shape:
            return from_bytes(b"", dtype, info.shape)
        form = numpy_dtype(dtype)
        held = np.frombuffer(storage, form, len(storage) // form.itemsize)
        # Dims of one element do not move; their strides may be anything, and NumPy's arrays have few dims.
        moving = [(size, step * form.itemsize) for size, step in zip(info.shape, info.stride) if size > 1]
        sizes, steps = [size for size, _ in moving], [step for _, step in moving]
        # In bounds: _check has compared the last element's place with the storage.
        part = np.lib.stride_tricks.as_strided(held[info.start_offset :], sizes, steps, writeable=False)
        return from_bytes(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, dtype, info.shape)


def _entries(pairs: Pairs) -> Iterator[tuple[Any, Any]]:
    """A dictionary's entries whose keys name something; of equal keys the last one counts."""
    return iter({key: value for key, value in pairs.items if isinstance(key, (str, int))}.items())


def _check_kind(path: Path) -> None:
    """Raise ``PthError`` for what is no zip archive, saying what it is where that is known."""
    with io_errors(path), path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise PthError(path, "is empty")
    if start[:1] == b"\x80":
        raise PthError(path, "is a bare pickle, as PyTorch before 1.6 wrote; load and save it with PyTorch again")
    if start[:2] != b"PK":
        raise PthError(path, "no PyTorch checkpoint: no zip archive")

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
from .pth_archive import PthArchive
from .pth_keys import NAME_LIMIT, entries, key_name
from .pth_names import is_module
from .pth_pickle import interpret
from .pth_records import Pairs, TensorRecord, Unread
from .raw import DIM_LIMIT, element_count, from_bytes, numpy_dtype
from .reading import OpenFile, shown

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

NAMES_LIMIT = 1 << 27
"""Most characters of all names: a long key above many tensors is in the name of each."""

REPEAT_LIMIT = 1 << 26
"""Most elements that tensors may have beyond those in the file, as ``expand`` makes them: of one, and of all."""

UNPACKED_LIMIT = 1_000_000
"""A description of more bytes than this is read if it is stored, as PyTorch does, or ..."""

PACKED_RATIO = 4
"""... if it becomes at most so many times larger than it is in the file: one byte of it can take a hundred."""

VIEW_LIMIT = 4
"""How often each element of a storage may be in different views of it, ``REPEAT_LIMIT`` apart."""

STORAGE_RATIO = 20
"""How many times larger than in the file a storage counts at most."""


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
    unread: str | None = None
    """Why it is none that is read; then nothing else is known but the name."""

    def byte_count(self) -> int:
        """Bytes of its elements, each where it is repeated counted again."""
        return element_count(self.shape, DIM_LIMIT**2) * DTYPES[self.dtype].size


class Reader:
    """The tensors of one checkpoint, by dotted name; ``key`` chooses a dictionary in it, "state_dict" say.

    Raises ``NotFoundError``, ``IoError``, and ``PthError`` for a damaged file, one in the format of before
    PyTorch 1.6, big-endian numbers, a description that refers to anything but tensors and plain values, names of
    more than ``NAME_LIMIT`` characters, and a key that is not there.
    """

    def __init__(self, path: str | PathLike[str], key: str | None = None) -> None:
        self.path = Path(path)
        _check_kind(self.path)
        self._archive = PthArchive(path, self._invalid)
        found = [name for name in self._archive.names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise self._invalid("no PyTorch checkpoint: a zip archive without a data.pkl")
        self._folder = found[0].rpartition("/")[0]
        order = f"{self._folder}/byteorder"
        if order in self._archive and self._archive.read_start(order, 16) != b"little":
            raise self._invalid("holds big-endian numbers; takes little-endian ones")
        size = self._archive.size(found[0])
        if size > PICKLE_LIMIT or size > max(UNPACKED_LIMIT, self._archive.bounded_size(found[0], PACKED_RATIO)):
            raise self._invalid(f"claims a description of {size} bytes, or one that is packed too well; store it")
        description = self._archive.read(found[0])
        root = interpret(description, str(self.path))
        self._most = SHARED_LIMIT + len(description)
        self.tensors = {info.name: info for info in self._infos(root if key is None else self._chosen(root, key))}

    def array(self, name: str) -> mx.array:
        """One tensor. Raises ``PthError`` when its storage lacks it, or for a dtype that is not read."""
        info = self.tensors[name]
        self._check(info)
        size = DTYPES[info.dtype].size
        begin, end = info.start_offset * size, (self._last(info) + 1) * size
        if 0 in info.shape:
            return self._array(info, b"", 0)
        return self._array(info, self._archive.read_part(info.path, begin, end), 0)

    def arrays(self) -> Iterator[tuple[str, mx.array]]:
        """All tensors in the file's order; a storage that several share is read once, the same tensor made once.

        Raises ``PthError`` as ``array``, and when they have far more elements than the file, as views of the same
        numbers can: one in all, and those of each four times, are no more than files of PyTorch need.
        """
        for info in self.tensors.values():
            self._check(info)
        self._check_sum()
        uses = Counter(info.path for info in self.tensors.values())
        places = Counter(_place(info) for info in self.tensors.values())
        made: dict[Any, mx.array] = {}
        storages: dict[str, bytes] = {}
        for name, info in self.tensors.items():
            place = _place(info)
            if place in made:
                array = made[place]
            else:
                if info.path not in storages:
                    storages[info.path] = self._archive.read(info.path)
                array = self._array(info, storages[info.path], info.start_offset)
            if places[place] > 1:
                made[place] = array
            uses[info.path] -= 1
            if not uses[info.path]:
                storages.pop(info.path, None)
            yield name, array

    def _invalid(self, reason: str) -> PthError:
        return PthError(self.path, reason)

    # --- what the description holds -----------------------------------------------------------

    def _chosen(self, root: Any, key: str) -> Any:
        found = entries(root) if isinstance(root, Pairs) else []
        chosen = [value for name, value in found if isinstance(name, str) and name == key]
        if not chosen:
            known = ", ".join(shown(key_name(name)) for name, _ in found[:10]) or "no keys"
            raise self._invalid(f"has no key {shown(repr(key))}; has {known}")
        return chosen[0]

    def _infos(self, root: Any) -> Iterator[TensorInfo]:
        """The tensors below a value, named by the keys that lead there, without recursion."""
        names: set[str] = set()
        looked_at = characters = 0
        holders = (TensorRecord, Unread, Pairs, list, tuple)
        waiting: list[tuple[tuple[str, ...], Any]] = [((), root)]
        while waiting:
            path, value = waiting.pop()
            if isinstance(value, (TensorRecord, Unread)):
                length = sum(map(len, path)) + max(0, len(path) - 1)
                characters += length
                if length > NAME_LIMIT:
                    raise self._invalid(f"a tensor's name has {length} characters; takes up to {NAME_LIMIT}")
                if characters > NAMES_LIMIT:
                    raise self._invalid(f"the tensors' names have more than {NAMES_LIMIT} characters")
                name = ".".join(path)
                if name in names:
                    raise self._invalid(f"two tensors have the name {shown(name)}")
                names.add(name)
                yield self._info(name, value)
            elif isinstance(value, (Pairs, list, tuple)):
                if len(path) == DEPTH_LIMIT:
                    raise self._invalid(f"values are nested deeper than {DEPTH_LIMIT}, or hold themselves")
                looked_at += len(value.items if isinstance(value, Pairs) else value)
                if looked_at > self._most:
                    raise self._invalid(f"names the same values again and again, more than {self._most} in all")
                parts = entries(value) if isinstance(value, Pairs) else enumerate(value)
                below = [((*path, key_name(key)), part) for key, part in parts if isinstance(part, holders)]
                waiting.extend(reversed(below))

    def _info(self, name: str, tensor: TensorRecord | Unread) -> TensorInfo:
        if isinstance(tensor, Unread):
            made_by = shown(tensor.made_by, 200)
            reason = f"is made by {made_by}, which is not read"
            if is_module(*tensor.made_by):
                reason = f"is a module, {made_by}, which is not read; save its state_dict()"
            return TensorInfo(name, "", (), (), 0, "", 0, reason)
        storage = tensor.storage
        place = f"{self._folder}/data/{storage.key}"
        return TensorInfo(name, tensor.dtype, tensor.shape, tensor.stride, tensor.offset, place, storage.count)

    # --- elements -----------------------------------------------------------------------------

    def check_kind(self, info: TensorInfo) -> None:
        """Raise ``PthError`` for what is made in a way that is not read, or of a dtype that is not."""
        name = f"tensor {shown(info.name)}" if info.name else "its only value"
        if info.unread is not None:
            raise self._invalid(f"{name} {info.unread}")
        if info.dtype not in DTYPES:
            raise self._invalid(f"{name} is {info.dtype}; takes {', '.join(DTYPES)}")

    def _check(self, info: TensorInfo) -> None:
        """Raise ``PthError`` unless all elements are in the storage, and the storage in the file."""
        self.check_kind(info)
        name = shown(info.name)
        if max(info.shape, default=0) > DIM_LIMIT:
            raise self._invalid(f"tensor {name}: shape {info.shape}; takes sizes below 2^31")
        if info.path not in self._archive:
            raise self._invalid(f"tensor {name}: the storage {shown(info.path)} is not there")
        held = self._archive.size(info.path) // DTYPES[info.dtype].size
        if 0 in info.shape:
            return
        last = self._last(info)
        if last >= held:
            raise self._invalid(f"tensor {name} needs {last + 1} elements, its storage has {held}")
        granted = self._granted(info)
        limit = max(granted, REPEAT_LIMIT)
        if element_count(info.shape, limit) > limit:
            raise self._invalid(f"tensor {name} of shape {info.shape} repeats {held} elements too often")
        if held > limit:
            raise self._invalid(f"tensor {name}: its storage of {held} elements is packed too well; store it")

    def _last(self, info: TensorInfo) -> int:
        """The place of the last element in the storage."""
        return info.start_offset + sum((size - 1) * step for size, step in zip(info.shape, info.stride))

    def _granted(self, info: TensorInfo) -> int:
        """The elements of the storage, or fewer where it takes almost no room in the file."""
        return self._archive.bounded_size(info.path, STORAGE_RATIO) // DTYPES[info.dtype].size

    def _check_sum(self) -> None:
        """Raise ``PthError`` if all tensors together, each place counted once, are far more than the file holds."""
        granted = {info.path: self._granted(info) for info in self.tensors.values()}
        limit = VIEW_LIMIT * sum(granted.values()) + REPEAT_LIMIT
        total = sum(element_count(info.shape, limit) for info in {_place(i): i for i in self.tensors.values()}.values())
        if total > limit:
            raise self._invalid(f"its tensors have {total} elements, of {sum(granted.values())} in its storages")

    def _array(self, info: TensorInfo, storage: bytes | bytearray, start: int) -> mx.array:
        """The tensor out of its storage, or of the part of it that begins at its first element."""
        dtype = DTYPES[info.dtype]
        if 0 in info.shape:
            return from_bytes(b"", dtype, info.shape)
        form = numpy_dtype(dtype)
        held = np.frombuffer(storage, form, len(storage) // form.itemsize)
        # Dims of one element do not move; their strides may be anything, and NumPy's arrays have few dims.
        moving = [(size, step * form.itemsize) for size, step in zip(info.shape, info.stride) if size > 1]
        sizes, steps = [size for size, _ in moving], [step for _, step in moving]
        # In bounds: _check has compared the last element's place with the storage.
        part = np.lib.stride_tricks.as_strided(held[start:], sizes, steps, writeable=False)
        return from_bytes(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, dtype, info.shape)


def _place(info: TensorInfo) -> tuple[Any, ...]:
    """What decides a tensor's elements: two of the same place are the same."""
    return info.path, info.dtype, info.shape, info.stride, info.start_offset


def _check_kind(path: Path) -> None:
    """Raise ``PthError`` for what is no zip archive, saying what it is where that is known."""
    start = bytes(OpenFile(path).read(0, 4))
    if not start:
        raise PthError(path, "is empty")
    if start[:1] == b"\x80":
        raise PthError(path, "is a bare pickle, as PyTorch before 1.6 wrote; load and save it with PyTorch again")
    if start[:2] != b"PK":
        raise PthError(path, "no PyTorch checkpoint: no zip archive")

"""Parts of checkpoints, to make hostile ones of."""

from __future__ import annotations

import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

from metal_candle.formats.pth_records import Pairs

STOP = b"."


def checkpoint(path: Path, description: bytes, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", description)
        for key, data in (storages or {"0": bytes(16)}).items():
            archive.writestr(f"x/data/{key}", data)
    return path


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + data


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(count: int = 4, kind: str = "FloatStorage", key: str = "0") -> bytes:
    return (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + number(count) + b"tQ"
    )


def tensor(shape: bytes = numbers(4), stride: bytes = numbers(1), offset: int = 0, held: bytes | None = None) -> bytes:
    start = b"ctorch._utils\n_rebuild_tensor_v2\n(" + (storage() if held is None else held) + number(offset)
    return start + shape + stride + b"\x89}tR"


PLAIN = (type(None), bool, int, float, str, bytes, bytearray, tuple, list, dict, OrderedDict, set, frozenset)


def assert_inert(value: object) -> None:
    """Nothing but plain values and this package's own records, which do nothing: all the way down."""
    seen: set[int] = set()
    rest = [value]
    while rest:
        thing = rest.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        assert type(thing) in PLAIN or type(thing).__module__ == "metal_candle.formats.pth_records", repr(type(thing))
        if isinstance(thing, dict):
            rest += [*thing.keys(), *thing.values()]
        elif isinstance(thing, Pairs):
            rest += thing.items
        elif isinstance(thing, (tuple, list, set, frozenset)):
            rest += thing


def dictionary(**values: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in values.items()) + b"u."

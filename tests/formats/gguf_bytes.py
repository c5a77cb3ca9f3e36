"""GGUF files for tests: one with everything in it, and files put together by hand."""

from __future__ import annotations

import io
import struct

from metal_candle.formats.ggml_encode import encode
from metal_candle.formats.gguf_value import Value
from metal_candle.formats.gguf_writer import Entry, write_gguf

import numpy as np

METADATA = {
    "general.architecture": Value.String("llama"),
    "a.u8": Value.U8(1),
    "a.i8": Value.I8(-1),
    "a.u16": Value.U16(2),
    "a.i16": Value.I16(-2),
    "a.u32": Value.U32(3),
    "a.i32": Value.I32(-3),
    "a.u64": Value.U64(4),
    "a.i64": Value.I64(-4),
    "a.f32": Value.F32(0.1),
    "a.f64": Value.F64(0.1),
    "a.bool": Value.Bool(True),
    "a.words": Value.of(["Ġthe", "", "日本"]),
    "a.bytes": Value.of(np.arange(5, dtype=np.uint8)),
    "a.flags": Value.of([True, False]),
    "a.empty": Value.Array([]),
}
NESTED = {"a.nested": Value.of([[1, 2], ["x"], [[0.5]]])}


def entry(name: str, kind: str, shape: tuple[int, ...]) -> Entry:
    values = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    return Entry(name, kind, shape, encode(values, kind))


def entries() -> list[Entry]:
    return [
        entry("blk.0.w", "Q4_0", (3, 64)),
        entry("norm", "F32", (5,)),
        entry("deep", "Q8_0", (2, 1, 3, 32)),
        entry("half", "F16", (3, 7)),
        entry("one", "F32", (1,)),
        entry("b", "BF16", (1, 3)),
    ]


def written(metadata: dict[str, Value], tensors: list[Entry]) -> bytes:
    file = io.BytesIO()
    write_gguf(file, metadata, tensors)
    return file.getvalue()


WHOLE = written(METADATA | NESTED, entries())


def by_hand(version: int, pairs: list[bytes], infos: list[bytes], data: bytes, align: int = 32) -> bytes:
    """A file of another version than is written; version 1 has 32-bit lengths."""
    head = b"GGUF" + struct.pack("<I" + ("II" if version == 1 else "QQ"), version, len(infos), len(pairs))
    head += b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % align) + data


def text(value: str, version: int) -> bytes:
    return struct.pack("<I" if version == 1 else "<Q", len(value.encode())) + value.encode()


def info(name: str, shape: tuple[int, ...], kind: int, offset: int, version: int = 3) -> bytes:
    code = "I" if version == 1 else "Q"
    dims = struct.pack(f"<I{len(shape)}{code}", len(shape), *reversed(shape))
    return text(name, version) + dims + struct.pack("<IQ", kind, offset)

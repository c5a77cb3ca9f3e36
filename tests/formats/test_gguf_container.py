"""The GGUF container: written, read back, read by others, and damaged in every way."""

from __future__ import annotations

import errno
import io
import os
import struct
from pathlib import Path
from typing import Any

from metal_candle.error import CheckpointError, Error, ModelError
from metal_candle.formats.ggml_encode import encode
from metal_candle.formats.gguf import GGUFHeader, read_gguf_header, read_tensor_bytes
from metal_candle.formats.gguf_value import Value
from metal_candle.formats.gguf_writer import Entry, write_gguf

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        entry("one", "F32", ()),
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


# --- round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["path", "file", "BytesIO", "bytes"])
def test_what_is_written_is_read(tmp_path: Path, way: str) -> None:
    path = tmp_path / "new folder" / "a.gguf"
    write_gguf(path, METADATA | NESTED, entries())
    assert path.read_bytes() == WHOLE
    with path.open("rb") as file:
        source: Any = {"path": str(path), "file": file, "BytesIO": io.BytesIO(WHOLE), "bytes": WHOLE}[way]
        header = read_gguf_header(source)
        assert header.version == 3
        assert header.values == METADATA | NESTED
        assert header.metadata["a.nested"] == [[1, 2], ["x"], [[0.5]]]
        assert list(header.tensors) == [tensor.name for tensor in entries()]
        for tensor in entries():
            found = header.tensors[tensor.name]
            assert (found.type, found.shape) == (tensor.kind, tensor.shape)
            assert found.begin % 32 == 0
            np.testing.assert_array_equal(read_tensor_bytes(source, found), tensor.data)


@pytest.mark.parametrize("alignment", [None, 1, 8, 64, 4096])
def test_the_gguf_package_reads_what_is_written(tmp_path: Path, alignment: int | None) -> None:
    metadata = dict(METADATA)
    if alignment is not None:
        metadata["general.alignment"] = Value.U32(alignment)
    path = tmp_path / "a.gguf"
    write_gguf(path, metadata, entries())
    reader = gguf.GGUFReader(path)
    for key, value in metadata.items():
        if value.plain() != []:  # of which that reader has no content
            assert reader.get_field(key).contents() == value.plain(), key
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in entries():
        found = tensors[tensor.name]
        assert found.tensor_type.name == tensor.kind
        assert tuple(reversed(found.shape.tolist())) == tensor.shape
        assert found.data.tobytes() == tensor.data.tobytes()
    header = read_gguf_header(path)
    assert all(found.begin % (alignment or 32) == 0 for found in header.tensors.values())


def test_what_the_gguf_package_writes_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("x.u32", 7)
    writer.add_array("x.words", ["a", "b"])
    writer.add_custom_alignment(128)
    values = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    writer.add_tensor(
        "w", gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q5_1), raw_dtype=gguf.GGMLQuantizationType.Q5_1
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf_header(tmp_path / "a.gguf")
    assert header.values["x.u32"] == Value.U32(7)
    assert header.metadata["x.words"] == ["a", "b"]
    assert (header.tensors["w"].type, header.tensors["w"].shape) == ("Q5_1", (4, 64))
    np.testing.assert_array_equal(read_tensor_bytes(tmp_path / "a.gguf", header.tensors["w"]), encode(values, "Q5_1"))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_all_versions(version: int) -> None:
    length = struct.pack("<I" if version == 1 else "<Q", 2)
    pairs = [
        text("k", version) + struct.pack("<II", 4, 9),
        text("words", version) + struct.pack("<II", 9, 8) + length + text("a", version) + text("é", version),
        text("nested", version) + struct.pack("<II", 9, 9) + length + 2 * (struct.pack("<I", 0) + length + b"\x01\x02"),
    ]
    numbers = np.arange(6, dtype="<f4")
    whole = by_hand(version, pairs, [info("t", (2, 3), 0, 0, version)], numbers.tobytes())
    header = read_gguf_header(whole)
    assert (header.version, header.metadata) == (version, {"k": 9, "words": ["a", "é"], "nested": [[1, 2], [1, 2]]})
    assert header.tensors["t"].shape == (2, 3)
    np.testing.assert_array_equal(read_tensor_bytes(whole, header.tensors["t"]).view("<f4"), numbers)


VALUES = st.one_of(
    st.booleans().map(Value.Bool),
    st.integers(0, 2**64 - 1).map(Value.U64),
    st.integers(-128, 127).map(Value.I8),
    st.floats(allow_nan=False).map(Value.F64),
    st.floats(width=32, allow_nan=False).map(Value.F32),
    st.text(st.characters(exclude_categories=["Cs"])).map(Value.String),
    st.lists(st.integers(-(2**31), 2**31 - 1).map(Value.I32), max_size=5).map(Value.Array),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])).map(Value.String), max_size=3).map(Value.Array),
)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])).map("k.".__add__), VALUES, max_size=6),
    st.lists(st.tuples(st.sampled_from(["F32", "F16", "Q4_0"]), st.lists(st.integers(1, 3), max_size=3)), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_any_content_comes_back(metadata: dict[str, Value], kinds: list[tuple[str, list[int]]]) -> None:
    tensors = [
        entry(str(i), kind, (*shape, 32) if kind == "Q4_0" else tuple(shape)) for i, (kind, shape) in enumerate(kinds)
    ]
    whole = written(metadata, tensors)
    header = read_gguf_header(whole)
    assert header.values == metadata
    for tensor in tensors:
        assert read_tensor_bytes(whole, header.tensors[tensor.name]).tobytes() == tensor.data.tobytes()


# --- what is not written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({}, [entry("a", "F32", (1,)), entry("a", "F32", (1,))], "tensor a is there twice"),
        ({}, [Entry("a", "F32", (0,), np.empty(0, np.uint8))], r"tensor a has shape \(0,\); takes up to 4"),
        ({}, [entry("a", "F32", (1, 1, 1, 1, 1))], "takes up to 4 dimensions"),
        ({"general.alignment": Value.U32(0)}, [], r"general\.alignment is U32\(0\); takes a U32 above 0"),
        ({"general.alignment": Value.String("a")}, [], r"general\.alignment"),
        ({"a": Value.String("\ud800")}, [], "half of a surrogate pair"),
        ({"\ud800": Value.U8(1)}, [], "half of a surrogate pair"),
    ],
)
def test_what_is_refused_leaves_the_old_file(
    tmp_path: Path, metadata: dict[str, Value], tensors: list[Entry], message: str
) -> None:
    path, file = tmp_path / "a.gguf", io.BytesIO()
    path.write_bytes(b"old")
    for target in (path, file):
        with pytest.raises(Error, match=message):
            write_gguf(target, metadata, tensors)
    assert path.read_bytes() == b"old"
    assert file.getvalue() == b""
    assert [found.name for found in tmp_path.iterdir()] == ["a.gguf"]


def test_nesting_is_as_deep_when_written_as_when_read() -> None:
    value = Value.of([1])
    for _ in range(7):
        value = Value.Array([value])
    assert read_gguf_header(written({"a": value}, [])).values == {"a": value}
    with pytest.raises(Error, match="nested more than 8 deep"):
        written({"a": Value.Array([value])}, [])
    deep = text("a", 3) + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9 + struct.pack("<IQB", 0, 1, 1)
    with pytest.raises(ModelError.InvalidFormat, match="nested more than 8 deep"):
        read_gguf_header(by_hand(3, [deep], [], b""))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError.SaveFailed, match="No space left"):
        write_gguf(path, METADATA, entries())
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.gguf"]


def test_other_targets_and_sources_are_refused() -> None:
    with pytest.raises(Error, match="got int; takes a path or a binary file"):
        write_gguf(3, {}, [])  # type: ignore[arg-type]
    with pytest.raises(Error, match="got int; takes a path, a binary file or bytes"):
        read_gguf_header(3)  # type: ignore[arg-type]


# --- damage -----------------------------------------------------------------------------------


def read_all(whole: bytes) -> tuple[GGUFHeader, dict[str, bytes]]:
    header = read_gguf_header(whole)
    return header, {name: read_tensor_bytes(whole, tensor).tobytes() for name, tensor in header.tensors.items()}


def test_every_truncation_is_one_clear_error() -> None:
    last = read_gguf_header(WHOLE).tensors["b"].end
    for size in range(last):
        with pytest.raises(ModelError.InvalidFormat) as raised:
            read_gguf_header(WHOLE[:size])
        assert "\n" not in str(raised.value)
    read_all(WHOLE[:last])  # what follows the last tensor is padding


@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 64)
)
@settings(max_examples=300, deadline=None)
def test_damage_is_read_or_refused(changes: list[tuple[int, int]], cut: int) -> None:
    """Nothing but an error of ours, or content from inside the file."""
    whole = bytearray(WHOLE)
    for place, byte in changes:
        whole[place] = byte
    del whole[len(whole) - cut :]
    try:
        header, tensors = read_all(bytes(whole))
    except ModelError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert refusal.isprintable()
        return
    for name, tensor in header.tensors.items():
        assert header.data_start <= tensor.begin < tensor.end <= len(whole)
        assert tensors[name] == bytes(whole[tensor.begin : tensor.end])


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_behind_the_magic_is_refused_or_empty(noise: bytes) -> None:
    for start in (b"GGUF\x01\0\0\0", b"GGUF\x03\0\0\0"):
        try:
            header = read_gguf_header(start + noise)
        except ModelError:
            continue
        assert all(tensor.end <= len(noise) + 8 for tensor in header.tensors.values())


ONE = bytes(4)
ALIGNED = bytes(32) + ONE


def pair(kind: int, content: bytes) -> bytes:
    return text("k", 3) + struct.pack("<I", kind) + content


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        (b"", "the file is empty"),
        (b"GG", "not a GGUF file"),
        (b"PK\x03\x04rest", "not a GGUF file"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, "more than its 24 bytes hold"),
        (b"GGUF\x01\x00\x00\x00" + b"\xff" * 8, "more than its 16 bytes hold"),
        (by_hand(3, [pair(13, b"")], [], b""), "metadata of unknown type 13"),
        (by_hand(3, [pair(7, b"\x02")], [], b""), "is 2; takes 0 or 1"),
        (by_hand(3, [pair(8, struct.pack("<Q", 2) + b"\xff\xfe")], [], b""), "is not UTF-8"),
        (by_hand(3, [pair(8, struct.pack("<Q", 2**63))], [], b""), "truncated inside its header"),
        (by_hand(3, [pair(9, struct.pack("<IQ", 8, 2**40))], [], b""), "claims 1099511627776 strings"),
        (by_hand(3, [pair(9, struct.pack("<IQ", 4, 2**62))], [], b""), "numbers, more than"),
        (by_hand(3, [pair(9, struct.pack("<IQ", 9, 99))], [], b""), "claims 99 arrays"),
        (by_hand(3, 2 * [pair(0, b"\x01")], [], b""), "metadata key k is there twice"),
        (by_hand(3, [text("general.alignment", 3) + struct.pack("<II", 4, 0)], [], b""), "alignment is 0"),
        (by_hand(3, [], [info("t", (1,), 0, 0)] * 2, ALIGNED), "tensor t is there twice"),
        (by_hand(3, [], [info("t", (2,), 0, 0), info("u", (1,), 0, 0)], ALIGNED), "tensors . and . overlap"),
        (by_hand(3, [], [info("t", (9,), 0, 0), info("u", (1,), 0, 32)], ALIGNED + ONE), "t and u overlap at byte"),
        (by_hand(3, [], [info("t", (1,), 0, 4)], ALIGNED), "starts at 4, which is no multiple of 32"),
        (by_hand(3, [], [info("t", (1,), 0, 64)], ALIGNED), "truncated: tensor t ends at byte"),
        (by_hand(3, [], [info("t", (1,), 0, 2**64 - 32)], ALIGNED), "truncated: tensor t ends"),
        (by_hand(3, [], [info("t", (2**60, 2**60), 0, 0)], ALIGNED), "truncated: tensor t ends"),
        (by_hand(3, [], [info("t", (0,), 0, 0)], ALIGNED), r"tensor t is empty: shape \(0,\)"),
        (by_hand(3, [], [info("t", (1,) * 5, 0, 0)], ALIGNED), "has 5 dimensions; takes up to 4"),
        (by_hand(3, [], [info("t", (33,), 2, 0)], ALIGNED), "rows of 33 do not divide into blocks of 32"),
        (by_hand(3, [], [info("t", (), 2, 0)], ALIGNED), "rows of 1 do not divide into blocks of 32"),
        (by_hand(3, [], [info("t", (32,), 20, 0)], ALIGNED), "tensor t is IQ4_NL, which is not read; takes F32"),
        (by_hand(3, [], [info("t", (32,), 99, 0)], ALIGNED), "tensor t is of type 99"),
    ],
)
def test_damaged_files_are_described(tmp_path: Path, whole: bytes, message: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(whole)
    for source in (path, whole):
        with pytest.raises(ModelError.InvalidFormat, match=message):
            read_gguf_header(source)


@pytest.mark.parametrize(("version", "message"), [(4, "found 4 in"), (0, "found 0 in"), (3 << 24, "big-endian")])
def test_other_versions_are_refused(version: int, message: str) -> None:
    with pytest.raises(ModelError.IncompatibleVersion, match=f"expected GGUF 1, 2 or 3, .*{message}"):
        read_gguf_header(b"GGUF" + struct.pack("<I", version))


def test_a_file_that_shrank_or_went_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(WHOLE)
    tensor = read_gguf_header(path).tensors["half"]
    path.write_bytes(WHOLE[: tensor.end - 1])
    with pytest.raises(ModelError.InvalidFormat, match=r"a\.gguf: truncated inside a tensor"):
        read_tensor_bytes(path, tensor)
    path.unlink()
    with pytest.raises(ModelError.FileNotFound, match=r"a\.gguf"):
        read_tensor_bytes(path, tensor)
    with pytest.raises(ModelError.InvalidFormat, match="Is a directory"):
        read_gguf_header(tmp_path)

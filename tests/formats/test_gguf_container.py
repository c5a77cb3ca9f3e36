"""The GGUF container: written, read back, and read by others."""

from __future__ import annotations

import errno
import io
import os
import struct
from pathlib import Path
from typing import Any

from metal_candle.error import CheckpointError, Error, ModelError
from metal_candle.formats.ggml_encode import encode
from metal_candle.formats.gguf import read_gguf_header, read_tensor_bytes
from metal_candle.formats.gguf_value import Value
from metal_candle.formats.gguf_writer import Entry, write_gguf

import gguf
import numpy as np
import pytest
from gguf_bytes import METADATA, NESTED, WHOLE, by_hand, entries, entry, info, text, written
from hypothesis import given, settings
from hypothesis import strategies as st

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
    tensors = [entry(str(i), kind, (*shape, 32 if kind == "Q4_0" else 5)) for i, (kind, shape) in enumerate(kinds)]
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
        ({}, [Entry("a", "F32", (0,), np.empty(0, np.uint8))], r"tensor a has shape \(0,\); takes 1 to 4"),
        ({}, [entry("a", "F32", (1, 1, 1, 1, 1))], "takes 1 to 4 dimensions"),
        ({}, [entry("a", "F32", ())], r"tensor a has shape \(\); takes 1 to 4 dimensions"),
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

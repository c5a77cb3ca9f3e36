"""Safetensors: damaged files are named, writing is whole or nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.error import (
    CheckpointError,
    ModelError,
    NotFoundError,
    SafeTensorError,
    UnsupportedSafeTensorDtypeError,
)
from metal_candle.formats import safetensors as codec
from metal_candle.formats.safetensors import DTYPES, PT, Reader, load_file, read_header, save
from metal_candle.formats.sharded import INDEX, load_directory

import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy


def raw(path: Path, entries: dict[str, Any], data: bytes) -> Path:
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (5, 7)])
def test_round_trip(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = (mx.random.uniform(0, 100, shape)).astype(DTYPES[dtype])
    save(tmp_path / "a.safetensors", {"x": array, "transposed": array.T}, {"key": "value"})
    header = read_header(tmp_path / "a.safetensors")
    assert header.metadata == {"key": "value"}
    assert (header.tensors["x"].dtype, header.tensors["x"].shape) == (dtype, shape)
    reader = Reader(tmp_path / "a.safetensors")
    ways = [{"x": reader.array("x"), "transposed": reader.array("transposed")}]
    if dtype != "F64":
        ways.append(load_file(tmp_path / "a.safetensors"))
    for loaded in ways:
        assert (loaded["x"].dtype, loaded["x"].shape) == (DTYPES[dtype], shape)
        assert loaded["x"].tolist() == array.tolist()
        assert loaded["transposed"].tolist() == array.T.tolist()


def test_the_reference_implementation_reads_what_is_written(tmp_path: Path) -> None:
    arrays = {"b": mx.arange(6).reshape(2, 3).astype(mx.float32), "a": mx.array([1, 2], dtype=mx.uint8)}
    save(tmp_path / "a.safetensors", arrays, PT)
    loaded = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert {name: array.tolist() for name, array in loaded.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }
    with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_folder_of_one_file_and_of_shards(tiny_model_dir: Callable[..., Path]) -> None:
    whole, sharded = load_directory(tiny_model_dir()), load_directory(tiny_model_dir(shards=3))
    assert whole.keys() == sharded.keys()
    assert all(mx.array_equal(whole[name], sharded[name]) for name in whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds 0 bytes, not even a header"),
        (b"\x01\x02", "holds 2 bytes"),
        (struct.pack("<Q", 1 << 60), "claims a header of 1152921504606846976 bytes"),
        (struct.pack("<Q", 50) + b"{}", "truncated inside its header at 10 bytes"),
        (struct.pack("<Q", 2) + b"\xff\xff", "the header is not text"),
        (struct.pack("<Q", 3) + b"{a}", "header: broken JSON"),
        (struct.pack("<Q", 2) + b"[]", "takes an object"),
    ],
)
def test_damaged_containers_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError.InvalidFormat, match=message) as raised:
        load_directory(tmp_path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("entries", "size", "message"),
    [
        ({"a": entry("F32", [2], 0, 8)}, 4, "truncated: .* fetch the file again"),
        ({"a": entry("F32", [2], 0, 8)}, 9, "1 bytes follow the last tensor"),
        ({"a": entry("F32", [3], 0, 8)}, 8, r"tensor a: F32 \(3,\) is 12 bytes, not 8"),
        ({"a": entry("F33", [1], 0, 8)}, 8, "tensor a is 'F33', which is no dtype of the format"),
        ({"a": entry(["F32"], [1], 0, 8)}, 8, "which is no dtype of the format"),
        ({"a": entry("F32", [0, 2**31], 0, 0)}, 0, r"takes sizes below 2\^31"),
        ({"a": entry("F32", [2**31 - 1] * 9, 0, 8)}, 8, "more than the file's"),
        ({"a": entry("F32", [True], 0, 4)}, 4, "are no sizes"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, 6, "tensor b overlaps"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, 12, "tensor b leaves a gap"),
        ({"a": entry("F32", [-1], 0, 4)}, 4, r"tensor a: shape \[-1\]"),
        ({"a": {"dtype": "F32"}}, 0, "tensor a: the entry lacks"),
        ({"a": 3}, 0, "tensor a: the entry lacks"),
        ({"__metadata__": 3}, 0, "__metadata__ is not an object"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, entries: dict[str, Any], size: int, message: str) -> None:
    with pytest.raises(ModelError.InvalidFormat, match=message):
        load_file(raw(tmp_path / "a.safetensors", entries, bytes(size)))


@pytest.mark.parametrize(("dtype", "size"), [("F64", 8), ("F8_E4M3", 1)])
def test_what_not_every_device_has_is_named(tmp_path: Path, dtype: str, size: int) -> None:
    path = raw(tmp_path / "a.safetensors", {"a": entry(dtype, [1], 0, size)}, bytes(size))
    with pytest.raises(UnsupportedSafeTensorDtypeError, match=f"tensor a is {dtype}; takes F32, F16"):
        load_file(path)


def test_numbers_of_thousands_of_digits_are_refused(tmp_path: Path) -> None:
    header = b'{"a":' + b"9" * 5000 + b"}"
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError.InvalidFormat, match=r"header: Exceeds the limit|tensor a: the entry lacks"):
        read_header(tmp_path / "a.safetensors")


def test_every_truncation_is_found(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    whole = (tiny_model_dir() / "model.safetensors").read_bytes()
    for size in range(0, len(whole), 997):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(ModelError.InvalidFormat):
            load_directory(tmp_path)


def test_missing_files_are_named(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    with pytest.raises(NotFoundError, match=r"model\.safetensors"):
        load_directory(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(NotFoundError, match=r"pytorch_model\.bin is there"):
        load_directory(tmp_path)
    with pytest.raises(NotFoundError, match="absent"):
        read_header(tmp_path / "absent.safetensors")
    folder = tiny_model_dir(shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"00002-of-00002.*named in"):
        load_directory(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "broken JSON"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": "../../secret"}}', "takes file names in the same folder"),
        ('{"weight_map": {"a": 1}}', "takes file names"),
    ],
)
def test_damaged_index_is_refused(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(ModelError.InvalidFormat, match=message):
        load_directory(tmp_path)


def test_index_that_names_a_tensor_its_shard_lacks(tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir(shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError.InvalidFormat, match="puts tensor ghost into model-00001"):
        load_directory(folder)


def test_a_failed_save_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {"x": mx.array([1.0])})
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError.SaveFailed, match=r"a\.safetensors: No space left on device"):
            save(path, {"x": mx.array([2.0])})
    with pytest.raises(ModelError.InvalidFormat, match=r"tensor x is mlx\.core\.complex64"):
        save(path, {"x": mx.array([1j])})
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError.SaveFailed, match="file is a file, not a folder"):
        save(tmp_path / "file" / "a.safetensors", {"x": mx.array([1.0])})
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError.SaveFailed, match="Is a directory"):
        save(tmp_path / "folder", {"x": mx.array([1.0])})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("together", [1, 40, 1 << 24])
def test_all_tensors_at_once_are_those_that_are_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(codec, "TOGETHER", together)
    rng = np.random.default_rng(0)
    arrays = {
        f"{name} {shape}": mx.array(rng.integers(0, 2, shape)).astype(dtype)
        for name, dtype in DTYPES.items()
        if name != "F64"
        for shape in ((3, 2), (), (0, 4), (5,))
    }
    save(tmp_path / "file", arrays)
    reader = Reader(tmp_path / "file")
    found = reader.arrays()
    assert list(found) == list(reader.header.tensors)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert mx.array_equal(found[name], array)
    last = max(reader.header.tensors, key=lambda name: reader.header.tensors[name].end)
    os.truncate(tmp_path / "file", reader.header.tensors[last].end - 1)
    with pytest.raises(SafeTensorError, match=f"tensor {re.escape(last)}: cut short since the file was opened"):
        reader.arrays()


@pytest.mark.parametrize("names", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_tensors_without_elements_stand_anywhere_in_a_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    monkeypatch.setattr(codec, "TOGETHER", 1)
    entries = {"a": entry("F32", [0], 0, 0), "b": entry("F32", [2], 0, 8), "c": entry("F32", [3, 0], 8, 8)}
    path = raw(tmp_path / "file", {name: entries[name] for name in names}, np.array([1, 2], "<f4").tobytes())
    found = Reader(path).arrays()
    assert {name: array.tolist() for name, array in found.items()} == {"a": [], "b": [1, 2], "c": [[], [], []]}
    assert list(found) == list(names)

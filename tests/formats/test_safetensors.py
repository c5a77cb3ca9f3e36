"""Safetensors as tensors: every dtype and shape, single tensors, metadata, damaged files."""

from __future__ import annotations

import gc
import json
import os
import re
import struct
import threading
import tracemalloc
from pathlib import Path
from typing import Any

from metal_candle import DType, Error, LazyTensor, Tensor
from metal_candle import safetensors as st
from metal_candle.error import (
    CannotFindTensorError,
    CheckpointError,
    IoError,
    NotFoundError,
    SafeTensorError,
    UnsupportedSafeTensorDtypeError,
)

import mlx.core as mx
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as some

DTYPES = list(DType)
SHAPES = some.lists(some.integers(0, 4), max_size=5).map(tuple)


def bits(tensor: Any) -> bytes:
    array = tensor.mlx()
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array).tobytes()


@some.composite
def any_tensor(draw: Any, kinds: Any = (Tensor, LazyTensor)) -> Any:
    """A tensor of any dtype, shape and bits: NaN, infinities and -0 among them."""
    dtype, shape = draw(some.sampled_from(DTYPES)), draw(SHAPES)
    size = int(np.prod(shape)) * dtype.size_in_bytes()
    return draw(some.sampled_from(kinds)).from_raw_buffer(draw(some.binary(min_size=size, max_size=size)), dtype, shape)


def file(entries: dict[str, Any], data: bytes) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


NAMES = some.text(some.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__")


@settings(max_examples=60, deadline=None)
@given(
    tensors=some.dictionaries(NAMES, any_tensor(), max_size=4), metadata=some.none() | some.dictionaries(NAMES, NAMES)
)
def test_what_is_saved_is_loaded_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any], metadata: dict[str, str] | None
) -> None:
    path = tmp_path_factory.mktemp("round") / "a.safetensors"
    st.save(tensors, path, metadata)
    opened = st.MmapedSafetensors.new(path)
    assert opened.metadata() == (metadata or {})
    data = path.read_bytes()
    for loaded in (st.load(path), st.load_buffer(data), {n: st.SliceSafetensors.new(data).load(n) for n in tensors}):
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert isinstance(loaded[name], Tensor)
            assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
            assert bits(loaded[name]) == bits(tensor)
    # The reference implementation takes the file too, with the same bytes.
    with safetensors.safe_open(path, "numpy") as other:
        assert (other.metadata() or {}) == (metadata or {})
    for name, view in safetensors.deserialize(data):
        assert bytes(view["data"]) == bits(tensors[name])
        assert tuple(view["shape"]) == tuple(tensors[name].shape)
        assert view["dtype"] == tensors[name].dtype.as_str().upper()


def test_files_of_the_reference_implementation(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    values = {name: np.arange(6).reshape(2, 3).astype(name) for name in ("float64", "float32", "float16", "uint16")}
    safetensors.numpy.save_file(values, path, {"step": "3"})
    loaded = st.load(path)
    assert {name: tensor.dtype.as_str() for name, tensor in loaded.items()} == {
        "float64": "f64",
        "float32": "f32",
        "float16": "f16",
        "uint16": "u32",
    }
    assert all(tensor.tolist() == values[name].tolist() for name, tensor in loaded.items())
    assert st.MmapedSafetensors.new(path).metadata() == {"step": "3"}


def test_strided_tensors_are_saved_in_order(tmp_path: Path) -> None:
    tensor = Tensor(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    parts = {"t": tensor.t(), "narrow": tensor.narrow(2, 1, 2), "wide": tensor.get(0).broadcast_left(2)}
    st.save(parts, tmp_path / "a")
    assert {n: t.tolist() for n, t in st.load(tmp_path / "a").items()} == {n: t.tolist() for n, t in parts.items()}


@pytest.mark.parametrize("dtype", ["BOOL", "I8", "U64", "F8_E4M3", "F8_E5M2", "C64", "F4"])
def test_dtypes_that_tensors_lack_are_refused_and_the_others_read(dtype: str) -> None:
    count = {"F4": 16, "U64": 1, "C64": 1}.get(dtype, 8)
    entries = {
        "odd": {"dtype": dtype, "shape": [count], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
    }
    data = file(entries, bytes(12))
    with pytest.raises(UnsupportedSafeTensorDtypeError, match=f"tensor odd is {dtype}; takes U8, U16") as raised:
        st.load_buffer(data)
    assert isinstance(raised.value, TypeError)
    opened = st.BufferedSafetensors.new(data)
    assert opened.load("b").tolist() == [0.0]
    assert (opened.get("odd").dtype, opened.get("odd").shape, opened.get("odd").data()) == (dtype, (count,), bytes(8))
    with pytest.raises(UnsupportedSafeTensorDtypeError):
        opened.load("odd")


# --- single tensors ---------------------------------------------------------------------------


def test_only_the_bytes_of_the_asked_tensor_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    st.save({f"t{i}": Tensor(np.full(100, i, np.float32)) for i in range(5)}, path)
    opened = st.MmapedSafetensors.new(path)
    asked = []
    preadv = os.preadv

    def counted(descriptor: int, parts: list[memoryview], offset: int) -> int:
        asked.append(sum(map(len, parts)))
        return preadv(descriptor, parts, offset)

    monkeypatch.setattr(os, "preadv", counted)
    view = opened.get("t3")
    assert (view.shape, view.dtype, view.data_len()) == ((100,), "F32", 400)
    assert [name for name, _ in opened.tensors()] == [f"t{i}" for i in range(5)]
    assert asked == []
    assert view.load().tolist() == [3.0] * 100
    assert asked == [400]


def test_names_that_are_not_there(tmp_path: Path) -> None:
    st.save({"weight": Tensor([1.0])}, tmp_path / "a")
    with pytest.raises(SafeTensorError, match="a: has no tensor weigth; nearest: weight"):
        st.MmapedSafetensors.new(tmp_path / "a").load("weigth")
    with pytest.raises(SafeTensorError, match="buffer: has no tensor x"):
        st.SliceSafetensors.new((tmp_path / "a").read_bytes()).get("x")
    with pytest.raises(CannotFindTensorError, match="cannot find tensor weigth; nearest: weight"):
        st.MmapedSafetensors.multi([tmp_path / "a"]).load("weigth")


def test_an_open_file_stays_what_it_was_and_a_cut_one_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a"
    st.save({"x": Tensor([1.0, 2.0])}, path)
    opened = st.MmapedFile.new(path).deserialize()
    st.save({"x": Tensor([3.0])}, path)
    assert opened.load("x").tolist() == [1.0, 2.0]
    cut = st.MmapedSafetensors.new(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(SafeTensorError, match="tensor x: cut short since the file was opened"):
        cut.load("x")


def test_buffers_at_odd_addresses() -> None:
    buffer = bytearray(
        b"?" + file({"x": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}}, struct.pack("<2d", 1, 2))
    )
    assert st.load_buffer(memoryview(buffer)[1:])["x"].tolist() == [1.0, 2.0]


def test_threads_read_one_open_file(tmp_path: Path) -> None:
    st.save({f"t{i}": Tensor(np.full(1000, i, np.float32)) for i in range(8)}, tmp_path / "a")
    opened = st.MmapedSafetensors.new(tmp_path / "a")
    wrong: list[int] = []

    def read(start: int) -> None:
        for i in range(start, start + 40):
            if opened.load(f"t{i % 8}").tolist() != [float(i % 8)] * 1000:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"__metadata__": Tensor([1.0])}, None, "no tensor can have the name __metadata__"),
        ({"\ud800": Tensor([1.0])}, None, "no Unicode text"),
        ({"a": Tensor([1.0])}, {"a": 3}, "got metadata 'a': 3; takes a dict of str to str"),
        ({"a": Tensor([1.0])}, {"a": "\ud800"}, "no Unicode text"),
        ({"a": [1.0]}, None, "save: got list for a; takes tensors"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_the_old_file_stays(
    tmp_path: Path, tensors: Any, metadata: Any, message: str
) -> None:
    path = tmp_path / "a"
    st.save({"old": Tensor([1.0])}, path)
    before = path.read_bytes()
    with pytest.raises(Error, match=message):
        st.save(tensors, path, metadata)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    st.save({"old": Tensor([1.0])}, path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError.SaveFailed, match="No space left on device") as raised:
        st.save({"new": Tensor([2.0])}, path)
    assert isinstance(raised.value, OSError)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


# --- damage -----------------------------------------------------------------------------------


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for open_ in (
        st.load,
        st.MmapedSafetensors.new,
        st.MmapedFile.new,
        lambda path: st.MmapedSafetensors.multi([path]),
    ):
        with pytest.raises(NotFoundError, match="absent: no such file") as raised:
            open_(tmp_path / "absent")
        assert isinstance(raised.value, FileNotFoundError)
    with pytest.raises(IoError, match="is a folder"):
        st.MmapedSafetensors.new(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(SafeTensorError, match="holds 0 bytes"):
        st.load(tmp_path / "empty")


@pytest.mark.parametrize("name", ["\\ud800", "a\\u0000b", ""])
def test_odd_names_are_read_as_they_are(name: str) -> None:
    text = '{"%s":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}' % name  # noqa: UP031
    loaded = st.load_buffer(struct.pack("<Q", len(text)) + text.encode() + b"\x07")
    assert loaded[json.loads(f'"{name}"')].tolist() == [7]


WHOLE = file(
    {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
        "c": {"dtype": "U16", "shape": [0, 4], "data_offsets": [26, 26]},
        "d": {"dtype": "BOOL", "shape": [1], "data_offsets": [26, 27]},
    },
    bytes(range(27)),
)


@settings(max_examples=400, deadline=None)
@given(
    cut=some.none() | some.integers(0, len(WHOLE)), flips=some.lists(some.integers(0, 8 * len(WHOLE) - 1), max_size=4)
)
def test_damaged_files_give_tensors_or_errors_of_ours(cut: int | None, flips: list[int]) -> None:
    data = bytearray(WHOLE)
    for flip in flips:
        data[flip // 8] ^= 1 << flip % 8
    damaged = bytes(data[:cut])
    if not flips and cut is not None and cut < len(WHOLE):
        with pytest.raises(SafeTensorError):
            st.SliceSafetensors.new(damaged)
        return
    try:
        opened = st.SliceSafetensors.new(damaged)
    except SafeTensorError:
        return
    for _, view in opened.tensors():
        try:
            tensor = view.load()
        except UnsupportedSafeTensorDtypeError:
            continue
        assert tensor.shape == view.shape
        assert tensor.elem_count() * tensor.dtype.size_in_bytes() >= view.data_len()


@settings(max_examples=300, deadline=None)
@given(data=some.binary(max_size=200), length=some.none() | some.integers(0, 250))
def test_any_bytes_give_errors_of_ours(data: bytes, length: int | None) -> None:
    given_ = data if length is None else struct.pack("<Q", length) + b"{" + data
    with pytest.raises(SafeTensorError):
        st.load_buffer(given_)


X = Tensor([1.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: st.save({1: X}, path), "save: got the name 1; takes a str"),
        (lambda path: st.save_sharded({b"a": X}, path), "save_sharded: got the name b'a'; takes a str"),
        (lambda path: st.save({"a\n": 1}, path), r"save: got int for a\n; takes tensors"),
        (
            lambda path: st.save(path, {"a": X}),
            r"save: got \w+Path for the tensors; takes (tensors, path), a dict first",
        ),
        (lambda path: st.save(str(path), {"a": X}), "save: got str for the tensors; takes (tensors, path)"),
        (lambda path: st.save_sharded(path, {"a": X}), "for the tensors; takes (tensors, directory), a dict first"),
        (lambda path: st.save_sharded({"a": X}, 5), "save_sharded: got int; takes (tensors, directory)"),
        (lambda path: st.save({"a": X}, path, "pt"), "save: got str for the metadata; takes a dict of str to str"),
        (lambda path: st.save({"a": X}, path, {"a": None}), "save: got metadata 'a': None; takes a dict"),
        (lambda path: st.save_sharded({"a": X}, path, 9, {1: "a"}), "save_sharded: got metadata 1: 'a'; takes"),
        (lambda path: st.load_buffer("path"), "load_buffer: got str; takes a file's bytes (load takes a path)"),
        (lambda path: st.SliceSafetensors.new("path"), "SliceSafetensors.new: got str; takes a file's bytes"),
        (lambda path: st.SliceSafetensors.new(path), "Path; takes a file's bytes (load takes a path)"),
        (lambda path: st.BufferedSafetensors.new(5), "BufferedSafetensors.new: got int; takes a file's bytes"),
        (lambda path: st.MmapedSafetensors.multi("x"), "MmapedSafetensors.multi: got str; takes a list of paths"),
        (lambda path: st.MmapedSafetensors.multi(path), "Path; takes a list of paths (new takes one)"),
    ],
)
def test_arguments_of_other_kinds_are_named(tmp_path: Path, call: Any, message: str) -> None:
    with pytest.raises(Error) as raised:
        call(tmp_path / "a")
    assert re.search(re.escape(message).replace(r"\\w\+", r"\w+"), str(raised.value))
    assert list(tmp_path.iterdir()) == []


def test_messages_are_one_line_whatever_the_names() -> None:
    """Names, dtypes and offsets with line breaks, escape codes and a hundred thousand letters."""
    good = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    for name in ("a\nb", "\x1b[2J", "n" * 100_000, "\u2028", "\u202e"):
        for entries in (
            {name: 5},
            {name: {**good, "dtype": name}},
            {name: {**good, "dtype": [name] * 100}},
            {name: {**good, "shape": [name]}},
            {name: {**good, "shape": [1] * 100_000, "data_offsets": [0, 2]}},
            {name: {**good, "shape": [10**4000]}},
            {name: {**good, "data_offsets": [0, 10**4000]}},
            {name: {**good, "data_offsets": [10**4000, 10**4000 + 1]}},
            {name: {**good, "shape": [2]}},
            {name: {**good, "data_offsets": [1, 2]}},
            {"__metadata__": {name: [name]}},
            {name: good, "z": good},
        ):
            with pytest.raises(SafeTensorError) as raised:
                st.load_buffer(file(entries, b"?"))
            assert str(raised.value).isprintable()
            assert len(str(raised.value)) < 500
        held = file({name: {**good, "dtype": "BOOL"}}, b"?")
        missing: Any = st.SliceSafetensors.new(held)
        for call in (lambda: st.load_buffer(held), lambda: missing.get(name + "?")):  # noqa: B023
            with pytest.raises((SafeTensorError, UnsupportedSafeTensorDtypeError)) as refused:
                call()
            assert str(refused.value).isprintable()
            assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "header: has dtype twice"),
        ('{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}', "header: has shape twice"),
        ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', "header: has a twice"),
        ('{"__metadata__":{"k":"a","k":"b"}}', "header: has k twice"),
        ('{"__metadata__":{"k":1}}', "__metadata__ has 1 for k; takes texts"),
        ('{"__metadata__":{"k":null}}', "__metadata__ has None for k; takes texts"),
        ('{"__metadata__":[]}', "__metadata__ is not an object"),
        ('{"__metadata__":""}', "__metadata__ is not an object"),
    ],
)
def test_headers_that_the_reference_implementation_refuses(header: str, message: str) -> None:
    data = struct.pack("<Q", len(header)) + header.encode() + b"?"
    with pytest.raises(SafeTensorError, match=message):
        st.load_buffer(data)


@pytest.mark.parametrize(("suffix", "copies"), [("safetensors", 1), ("npy", 1), ("npz", 2)])
def test_reading_takes_twice_the_memory_of_what_is_read_at_most(tmp_path: Path, suffix: str, copies: int) -> None:
    """Once in MLX's memory and once in Python's; ``zipfile`` copies once more, before MLX has any."""
    path, size = tmp_path / f"a.{suffix}", 32 << 20
    tensor = Tensor(np.zeros(size // 4, np.float32))
    if suffix == "npz":
        Tensor.write_npz({"a": tensor}, path)
        read: Any = Tensor.read_npz
    elif suffix == "npy":
        tensor.write_npy(path)
        read = Tensor.read_npy
    else:
        st.save({"a": tensor}, path)
        read = lambda file: st.MmapedSafetensors.new(file).load("a")  # noqa: E731
    read(path)
    gc.collect()  # what other tests left must not go while this is read
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()
    try:
        kept = read(path)
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    slack = 9 << 20  # the steps of reading, of 4 MiB
    assert size <= python <= copies * size + slack
    assert size <= mx.get_peak_memory() - before <= size + slack
    del kept

"""Safetensors as tensors: every dtype and shape, single tensors, metadata, damaged files."""

from __future__ import annotations

import json
import os
import struct
import threading
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
    pread = os.pread

    def counted(descriptor: int, count: int, offset: int) -> bytes:
        asked.append(count)
        return pread(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", counted)
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

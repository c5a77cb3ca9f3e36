"""Tensor methods over files: bytes, single-tensor safetensors, where bytes go."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var, npy, safetensors
from metal_candle.error import (
    CheckpointError,
    Error,
    IoError,
    NotEvaluatedError,
    SafeTensorError,
)
from metal_candle.formats.raw import from_bytes, to_bytes
from metal_candle.formats.safetensors import DTYPES
from metal_candle.tensor import compile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

KINDS = [Tensor, LazyTensor, Var]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(some.data())
def test_bytes_there_and_back(kind: Any, data: some.DataObject) -> None:
    dtype = data.draw(some.sampled_from(list(DType)))
    shape = data.draw(some.lists(some.integers(0, 4), max_size=4).map(tuple))
    size = int(np.prod(shape)) * dtype.size_in_bytes()
    raw = data.draw(some.binary(min_size=size, max_size=size))
    # A buffer that starts at an odd address, too.
    for given_ in (raw, bytearray(raw), memoryview(b"?" + raw)[1:]):
        tensor = kind.from_raw_buffer(given_, dtype, shape)
        assert (type(tensor), tensor.dtype, tensor.shape) == (kind, dtype, shape)
        out = io.BytesIO()
        tensor.write_bytes(out)
        assert out.getvalue() == raw


@pytest.mark.parametrize("kind", KINDS)
def test_one_tensor_as_safetensors(tmp_path: Path, kind: Any) -> None:
    tensor = kind.new([[1.0, 2.0], [3.0, 4.0]], dtype="f64")
    tensor.t().save_safetensors("w", tmp_path / "a")
    (name, loaded), *others = safetensors.load(tmp_path / "a").items()
    assert (name, loaded.dtype, loaded.tolist(), others) == ("w", DType.F64, [[1.0, 3.0], [2.0, 4.0]], [])
    with pytest.raises(SafeTensorError, match="__metadata__"):
        tensor.save_safetensors("__metadata__", tmp_path / "a")
    with pytest.raises(CheckpointError.SaveFailed, match="Is a directory"):
        tensor.save_safetensors("w", tmp_path)


def test_strided_tensors_write_their_elements_in_order() -> None:
    tensor = Tensor(np.arange(6, dtype=np.int16).reshape(2, 3))
    out = io.BytesIO()
    tensor.t().write_bytes(out)
    assert out.getvalue() == np.arange(6, dtype="<i2").reshape(2, 3).T.tobytes()


def test_where_bytes_go(tmp_path: Path) -> None:
    tensor = Tensor([1, 2], dtype="u8")
    tensor.write_bytes(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"\1\2"
    with (tmp_path / "b").open("wb") as file:
        tensor.write_bytes(file)
        tensor.write_bytes(file)
    assert (tmp_path / "b").read_bytes() == b"\1\2\1\2"
    with (tmp_path / "b").open("rb") as file, pytest.raises(IoError, match=r"b: "):
        tensor.write_bytes(file)
    with pytest.raises(CheckpointError.SaveFailed, match="Is a directory"):
        tensor.write_bytes(tmp_path)


def test_a_traced_tensor_has_no_value_to_write(tmp_path: Path) -> None:
    def save(x: Tensor) -> Tensor:
        x.write_npy(tmp_path / "a")
        return x

    with pytest.raises(NotEvaluatedError):
        compile(save)(Tensor([1.0]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,) * 33, (1,) * 31 + (2,), (0, 2**31 - 1, 2**31 - 1, 2**31 - 1), (2, 3, 1)])
def test_bytes_of_any_rank_become_an_array_of_their_shape(dtype: str, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape, dtype=object))
    # Of every dtype, bytes 0 and 1 make numbers that are equal to themselves.
    raw = bytes(i % 3 == 1 for i in range(count * DTYPES[dtype].size))
    array = from_bytes(raw, DTYPES[dtype], shape)
    assert (array.shape, array.dtype) == (shape, DTYPES[dtype])
    assert count == 0 or bytes(to_bytes(array)) == raw


class Trickle(io.RawIOBase):
    """A binary file without buffer that takes five bytes at a time."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.taken += bytes(data[:5])
        return min(len(data), 5)


def test_all_bytes_reach_a_file_that_takes_few_at_a_time() -> None:
    trickle = Trickle()
    Tensor(np.arange(9, dtype=np.float32)).write_bytes(trickle)
    assert trickle.taken == np.arange(9, dtype="<f4").tobytes()
    with pytest.raises(Error, match="write_bytes: got int; takes a path or a binary file"):
        Tensor([1.0]).write_bytes(5)  # type: ignore[arg-type]


WRITERS: list[Any] = [
    lambda path: Tensor([1.0]).write_npy(path),
    lambda path: Tensor.write_npz([("a", Tensor([1.0]))], path),
    lambda path: Tensor([1.0]).write_bytes(path),
    lambda path: Tensor([1.0]).save_safetensors("a", path),
    lambda path: safetensors.save({"a": Tensor([1.0])}, path),
]
READERS: list[Any] = [
    Tensor.read_npy,
    Tensor.read_npz,
    safetensors.load,
    safetensors.MmapedSafetensors.new,
    safetensors.MmapedFile.new,
    npy.NpzTensors.new,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_writer_refuses_what_is_no_file_and_keeps_links(tmp_path: Path, write: Any) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("real")
    for name in ("fifo", "n" * 300, "a\0b", "\ud800", "."):
        with pytest.raises(CheckpointError.SaveFailed) as raised:
            write(tmp_path / name)
        assert str(raised.value).isprintable()
    assert [path.name for path in tmp_path.iterdir() if path.is_fifo()] == ["fifo"]
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").stat().st_size > 0


@pytest.mark.parametrize("read", READERS)
def test_every_reader_refuses_what_is_no_file_at_once(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "loop", "n" * 300, "n/" * 3000, "a\0b", "\ud800", "/dev/null"):
        with pytest.raises(IoError) as raised:
            read(tmp_path / name)
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 500


@pytest.mark.parametrize("read", READERS)
def test_every_reader_names_a_file_without_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, os.strerror(13))

    with monkeypatch.context() as patch:
        for module, method in ((os, "open"), (Path, "is_dir"), (Path, "stat")):
            patch.setattr(module, method, denied)
        with pytest.raises(IoError, match=r"a: Permission denied"):
            read(tmp_path / "a")

"""Tensor methods over files: bytes, single-tensor safetensors, where bytes go."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var, safetensors
from metal_candle.error import (
    CheckpointError,
    IoError,
    NotEvaluatedError,
    SafeTensorError,
)
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

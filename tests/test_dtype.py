"""Dtypes: candle's names, sizes and questions, and what else is read as one."""

from __future__ import annotations

import pickle
import re
from typing import Any

from metal_candle import DType, error

import mlx.core as mx
import numpy as np
import pytest

SIZES = {"u8": 1, "i16": 2, "u32": 4, "i32": 4, "i64": 8, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_names_sizes_and_kinds(name: str, size: int) -> None:
    dtype = DType.from_str(name)
    assert dtype is getattr(DType, name.upper())
    assert dtype.as_str() == str(dtype) == f"{dtype}" == name
    assert dtype.size_in_bytes() == dtype.mlx().size == size
    assert dtype.is_float() == ("f" in name)
    assert dtype.is_int() == (not dtype.is_float())
    assert pickle.loads(pickle.dumps(dtype)) is dtype


def test_there_are_no_others() -> None:
    assert [dtype.as_str() for dtype in DType] == list(SIZES)


@pytest.mark.parametrize("dtype", list(DType), ids=str)
def test_what_is_read_as_a_dtype(dtype: DType) -> None:
    assert DType.of(dtype) is DType.of(dtype.as_str()) is DType.of(dtype.mlx()) is dtype
    if dtype is not DType.BF16:
        numpy = np.dtype(str(dtype.mlx()).rpartition(".")[2])
        assert DType.of(numpy) is DType.of(numpy.type) is DType.of(numpy.newbyteorder(">")) is dtype


def test_booleans_are_u8() -> None:
    assert DType.of(mx.bool_) is DType.of(np.bool_) is DType.of(np.dtype(bool)) is DType.U8


@pytest.mark.parametrize(
    "value",
    [
        "F32",
        "f8",
        "",
        "f8e4m3",
        mx.int8,
        mx.uint64,
        mx.complex64,
        np.dtype("uint16"),
        np.complex64,
        np.dtype("U1"),
        3,
        None,
    ],
    ids=repr,
)
def test_what_is_none(value: Any) -> None:
    text = f"dtype: cannot read {value!r}; takes u8, i16, u32, i32, i64, bf16, f16, f32 or f64"
    with pytest.raises(error.DTypeParseError, match=re.escape(text)) as caught:
        DType.of(value)
    assert isinstance(caught.value, ValueError)
    if isinstance(value, str):
        with pytest.raises(error.DTypeParseError, match=re.escape(text)):
            DType.from_str(value)


def test_from_str_reads_candle_s_names_only() -> None:
    assert DType.of("float32") is DType.F32
    with pytest.raises(error.DTypeParseError, match=re.escape("cannot read 'float32'")):
        DType.from_str("float32")

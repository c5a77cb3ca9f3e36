"""The same call on candle's own Python binding and on both kinds of tensor here, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from metal_candle import Device, DType, Error, LazyTensor, Tensor, error
from metal_candle.tensor.base import TensorBase

import numpy as np
import pytest
from odd import Array, assert_float, tensor

# Each of the binding's errors would look its stack up, which takes longer than the test.
os.environ["RUST_BACKTRACE"] = "0"
candle = pytest.importorskip("candle", reason="candle-nn, candle's own Python binding, is for Linux on x86-64")

KINDS: list[Any] = [Tensor, LazyTensor]
DTYPES = [DType.U8, DType.U32, DType.I64, DType.BF16, DType.F16, DType.F32, DType.F64]
FLOATS = [DType.BF16, DType.F16, DType.F32, DType.F64]
INTS = [DType.U8, DType.U32, DType.I64]


@dataclass(frozen=True)
class Operand:
    """Values of a dtype; those of floats are representable in float32, which is what the binding makes of floats."""

    values: Any
    dtype: DType

    def theirs(self) -> Any:
        array = np.asarray(self.values)
        if not array.size:
            return candle.zeros(array.shape, dtype=str(self.dtype))
        flat = array.reshape(-1).astype(np.float64 if self.dtype.is_float() else np.int64)
        return candle.Tensor(flat.tolist()).to_dtype(str(self.dtype)).reshape(array.shape)

    def ours(self, kind: Any) -> Any:
        return tensor(kind, np.asarray(self.values), self.dtype)


def f32(values: Any) -> Operand:
    return Operand(values, DType.F32)


def u32(values: Any) -> Operand:
    return Operand(values, DType.U32)


def i64(values: Any) -> Operand:
    return Operand(values, DType.I64)


def u8(values: Any) -> Operand:
    return Operand(values, DType.U8)


def zeros(*shape: int) -> Operand:
    return f32(np.zeros(shape))


def counted(*shape: int) -> Operand:
    return f32(np.arange(np.prod(shape, dtype=int)).reshape(shape))


@dataclass(frozen=True)
class Got:
    """A tensor that came out: dtype by name, sizes, values."""

    dtype: str
    shape: tuple[int, ...]
    values: Any


@dataclass(frozen=True)
class Raised:
    """An error that came out instead, and whether it came before anything was computed."""

    error: BaseException
    recorded: bool = True


def theirs(call: Callable[..., Any], *operands: Operand) -> Any:
    """What the binding gives."""
    made = [operand.theirs() for operand in operands]
    try:
        return _their_values(call(*made))
    except Exception as error:
        return Raised(error)
    except BaseException as error:  # what a Rust panic becomes is no Exception
        if type(error).__name__ != "PanicException":
            raise
        return Raised(error)


def _their_values(result: Any) -> Any:
    if isinstance(result, candle.Tensor):
        shape = tuple(result.shape)
        return Got(str(result.dtype).lower(), shape, np.array(result.flatten_all().values()).reshape(shape))
    if isinstance(result, (list, tuple)) and any(isinstance(item, candle.Tensor) for item in result):
        return [_their_values(item) for item in result]
    return result


def ours(kind: Any, call: Callable[..., Any], *operands: Operand) -> Any:
    """What is given here, by one kind of tensor."""
    made = [operand.ours(kind) for operand in operands]
    try:
        result = call(*made)
    except Exception as error:
        return Raised(error)
    try:
        return _our_values(kind, result)
    except Error as error:
        return Raised(error, recorded=False)


def _our_values(kind: Any, result: Any) -> Any:
    if isinstance(result, TensorBase):
        assert isinstance(result, kind)
        values = result.numpy()
        assert values.shape == tuple(result.shape)
        return Got(str(result.dtype), tuple(result.shape), values)
    if isinstance(result, (list, tuple)) and any(isinstance(item, TensorBase) for item in result):
        return [_our_values(kind, item) for item in result]
    return str(result) if isinstance(result, (Device, DType)) else result


def assert_same(want: Any, got: Any, ulps: float = 0, absolute: float = 0.0) -> None:
    """``got`` is ``want``: an error for an error; floats within some roundings of their dtype."""
    if isinstance(want, Raised):
        assert isinstance(got, Raised), f"candle: {str(want.error)[:200]!r}, here: {got}"
        assert isinstance(got.error, (Error, TypeError)), got.error
        # Values of ids are known when they are computed, everything else when it is recorded.
        assert got.recorded or isinstance(got.error, error.InvalidIndexError), got.error
    elif isinstance(want, Got):
        assert isinstance(got, Got), got
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        if DType.of(want.dtype).is_float():
            assert_float(got.values, want.values, DType.of(want.dtype), ulps, absolute)
            if not ulps:
                np.testing.assert_array_equal(got.values.astype(np.float64), want.values)
        else:
            np.testing.assert_array_equal(got.values.astype(np.int64), want.values.astype(np.int64))
    elif isinstance(want, list) and want and isinstance(want[0], Got):
        assert len(got) == len(want)
        for one, other in zip(want, got):
            assert_same(one, other, ulps, absolute)
    else:
        assert got == want


def agree(
    their_call: Callable[..., Any],
    our_call: Callable[..., Any] | None,
    operands: Sequence[Operand],
    ulps: float = 0,
    absolute: float = 0.0,
) -> None:
    """Assert that candle's binding, the eager tensor and the lazy one give the same; one call serves where it can."""
    want = theirs(their_call, *operands)
    for kind in KINDS:
        assert_same(want, ours(kind, our_call or their_call, *operands), ulps, absolute)


def float32(values: Array, dtype: DType) -> Array:
    """Values rounded to what both sides can be given: those of float32."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(values.dtype) if dtype is DType.F64 else values


class Case(NamedTuple):
    """A call of the binding, ours if it is spelled in another way, operands, and how near: in roundings, absolutely."""

    theirs: Callable[..., Any]
    operands: tuple[Operand, ...]
    ours: Callable[..., Any] | None = None
    ulps: float = 0
    absolute: float = 0.0

    def check(self) -> None:
        agree(self.theirs, self.ours, self.operands, self.ulps, self.absolute)

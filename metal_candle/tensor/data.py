"""Data from outside as MLX arrays: Python numbers and lists, NumPy arrays, MLX arrays, DLPack.

An array that is given here is never shared with its owner, who may change it later.
"""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import numpy as np

from ..device import Device
from ..dtype import DType, DTypeLike
from ..error import ArgumentTypeError, Error, ShapeMismatchError
from ..error.text import described
from ..formats.raw import from_bytes
from ..graph.evaluate import on_device
from ..graph.operation import Operation
from .base import TensorBase

# What candle calls the numbers of a list, where no dtype is given: by NumPy's kinds.
_NATURAL = {"b": DType.U8, "i": DType.I64, "u": DType.I64, "f": DType.F32}


def as_array(data: Any, dtype: DTypeLike | None = None, op: str = "new") -> mx.array:
    """``data`` as an MLX array in a dtype that candle has, not shared with anybody.

    Python ints become I64, floats F32, booleans U8, also in lists of NumPy's; a NumPy, MLX or DLPack array keeps
    its dtype, but for booleans (U8) and 16-bit unsigned integers (U32). ``dtype`` overrides: numbers of a list have
    to fit, arrays are cast as ``to_dtype`` does. Raises ``ShapeMismatchError`` for ragged lists,
    ``DTypeParseError`` for other elements, ``Error`` for numbers that do not fit and for tensors that a gradient
    goes through, which would end here.
    """
    wanted = None if dtype is None else DType.of(dtype)
    with on_device(Device.Cpu):  # float64 exists there only
        if isinstance(data, mx.array):
            # A handle of its own: where MLX changes an array in place, it gives the changed one to the old handle.
            array = copy.copy(data)
        elif isinstance(data, (np.ndarray, np.generic)):
            array = _of_numpy(np.asarray(data))
        elif isinstance(data, TensorBase):
            array = _of_tensor(data, op)
        elif isinstance(data, (int, float, list, tuple)):
            return _of_python(data, wanted, op)
        elif hasattr(data, "__dlpack__"):
            array = _of_dlpack(data, op)
        elif hasattr(data, "__array__"):
            array = _of_numpy(np.asarray(data))
        else:
            return _of_python(data, wanted, op)
        if array.dtype == mx.uint16:
            array = array.astype(mx.uint32)
        wanted = wanted or DType.of(array.dtype)
        return array if array.dtype == wanted.mlx_ else _cast(array, wanted)


def _cast(array: mx.array, dtype: DType) -> mx.array:
    cast: mx.array = Operation.ToDtype(dtype).lower(array)
    return cast


def of_dlpack(data: Any) -> mx.array:
    """An object with ``__dlpack__``, a torch tensor on the CPU say, copied. Raises ``Error`` for any other."""
    if not hasattr(data, "__dlpack__"):
        raise Error(f"from_dlpack: got {type(data).__name__}; takes an object with __dlpack__, a torch tensor say")
    return as_array(data, op="from_dlpack")


def of_buffer(data: Any, dtype: DType, op: str) -> mx.array:
    """Little-endian bytes as a 1-D array. Raises ``Error`` for what has no bytes or not a whole number of elements."""
    try:
        count, rest = divmod(memoryview(data).nbytes, dtype.size_in_bytes())
    except TypeError:
        raise Error(f"{op}: got {type(data).__name__}; takes bytes") from None
    if rest:
        bytes_ = count * dtype.size_in_bytes() + rest
        raise Error(f"{op}: got {bytes_} bytes; takes a multiple of {dtype.size_in_bytes()}, the size of {dtype}")
    return from_bytes(data, dtype.mlx_, (count,))


def _of_python(data: Any, wanted: DType | None, op: str) -> mx.array:
    """Numbers, alone or in nested lists."""
    _refuse_tensors(data, op)
    try:
        values = np.asarray(data)
    except ValueError as error:
        raise ShapeMismatchError(f"{op}: got lists of different lengths; takes a rectangular nesting") from error
    target = wanted or _NATURAL.get(values.dtype.kind)
    if values.dtype.kind not in _NATURAL:
        _refuse_large_integers(values, target or DType.I64, op)
        raise ArgumentTypeError(f"{op}: got {described(data)}; takes numbers, nested lists of them, or an array")
    if values.dtype.kind == "f" and target is not None and bool((np.abs(values) >= 2.0**63).any()):
        # Of integers of which some fit into 64 bits only with a sign and some only without one, NumPy makes floats.
        leaves = np.asarray(data, object)
        if all(isinstance(leaf, int) for leaf in leaves.reshape(-1).tolist()):
            raise _no_room(max(leaves.reshape(-1).tolist(), key=abs), DType.I64 if wanted is None else target, op)
    assert target is not None  # the kind is a known one
    if target.is_int() and values.dtype.kind != "b":
        _check_integers(values, target, op)
    return mx.array(values, target.mlx_)


def _refuse_tensors(data: Any, op: str) -> None:
    """A list of tensors would be read number by number, and cut off from their gradients."""
    first = data
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if isinstance(first, TensorBase):
        raise Error(f"{op}: got a list of tensors; takes numbers, Tensor.stack joins tensors")


def _refuse_large_integers(values: np.ndarray[Any, Any], target: DType, op: str) -> None:
    """NumPy makes objects of integers with more than 64 bits."""
    if values.dtype.kind == "O":
        for value in values.reshape(-1).tolist():
            if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
                raise _no_room(value, target, op)


def _check_integers(values: np.ndarray[Any, Any], target: DType, op: str) -> None:
    """Raise unless an integer dtype holds these numbers exactly."""
    if not values.size:
        return
    info = mx.iinfo(target.mlx_)
    for value in (values.min().item(), values.max().item()):
        if not info.min <= value <= info.max:
            raise _no_room(value, target, op)
    if values.dtype.kind == "f":
        odd = values != np.trunc(values)
        if odd.any():
            raise _no_room(values[odd][0].item(), target, op)


def _no_room(value: Any, target: DType, op: str) -> Error:
    info = mx.iinfo((target if target.is_int() else DType.I64).mlx_)
    return Error(f"{op}: {value} is no {target}; takes an integer from {info.min} to {info.max}")


def _of_numpy(values: np.ndarray[Any, Any]) -> mx.array:
    """A NumPy array of any layout and byte order."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        values = values.astype(np.uint32)
    dtype = DType.of(values.dtype)
    native = values.astype(values.dtype.newbyteorder("="), order="C", copy=False)
    if min(native.strides, default=0) < 0:
        native = native.copy()  # one element counts as contiguous whatever its stride, which MLX minds
    return mx.array(native, dtype.mlx_)


def _of_tensor(data: TensorBase, op: str) -> mx.array:
    if data.track_op():
        raise Error(
            f"{op}: got a tensor that a gradient goes through, which would end here; "
            "takes data: use the tensor as it is, or detach() it"
        )
    return data.mlx()


def _of_dlpack(data: Any, op: str) -> mx.array:
    try:
        return _of_numpy(np.from_dlpack(data))
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, Error):
            raise
        # NumPy reads no bfloat16; MLX does, but takes float64 for float32 and tensors whose gradient would end here.
        try:
            array = mx.array(data)
        except (RuntimeError, TypeError, ValueError):
            array = None
        if array is None or array.dtype != mx.bfloat16:
            raise Error(f"{op}: {error}") from error
        return array
    except BufferError as error:  # torch's word on tensors that require a gradient or are not on the CPU
        raise Error(f"{op}: {error}") from error

"""Evenly spaced numbers as candle makes them: by adding the step again and again, in the dtype of the result."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from ..dtype import DType
from ..error import ArgumentValueError, Error, ShapeMismatchError
from ..error.text import described
from ..graph.operations.counts import number
from ..shape import MAX_SIZE

_CHUNK = 1 << 20
_LARGEST = 1 << 1023  # of the integers that are floats too


def numbers(start: Any, end: Any, step: Any, dtype: DType | None, op: str) -> tuple[np.ndarray[Any, Any], DType]:
    """``start``, ``start + step`` … before ``end``, and their dtype: I64 for integers, else F32.

    BF16 comes as float32, which holds it. Raises ``ShapeMismatchError`` for a step of 0 and for too many numbers,
    ``ArgumentTypeError`` for what is no number, ``ArgumentValueError`` for what is not finite, for numbers that the
    dtype does not hold, and where adding the step changes nothing any more.
    """
    values = [_number(value, name, op) for value, name in ((start, "start"), (end, "end"), (step, "step"))]
    target = dtype or (DType.I64 if all(isinstance(value, int) for value in values) else DType.F32)
    first, last, by = values
    if by == 0:
        raise ShapeMismatchError(f"{op}: got step {step}; takes any other")
    if target.is_int():
        return _integers(first, last, by, target, op), target
    rounded = _rounding(target)
    with np.errstate(over="ignore"):
        first, last, by = (rounded(value) for value in values)
    if not all(map(np.isfinite, (first, last, by))):
        raise ArgumentValueError(f"{op}: got {start}, {end}, {step}; takes numbers that {target} holds")
    if not by:
        raise ShapeMismatchError(f"{op}: step {step} is 0 in {target}; takes any other")
    _check_count((float(last) - float(first)) / float(by), values, op)
    if target in (DType.F32, DType.F64):
        return _accumulated(first, last, by, target, op), target
    return _halves(first, last, by, target, op), target


def _number(value: Any, name: str, op: str) -> int | float:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and abs(int(value)) < _LARGEST:
        return int(value)
    if isinstance(value, (float, np.floating)) and math.isfinite(value):
        return float(value)
    number(op, name, value, "a finite number")
    raise ArgumentValueError(f"{op}: got {described(value)} for {name}; takes a finite number")


def _check_count(count: float, values: list[int | float], op: str) -> None:
    if count > MAX_SIZE:
        first, last, by = values
        raise ShapeMismatchError(f"{op}: got {first} to {last} by {by}, too many numbers; takes up to {MAX_SIZE}")


def _integers(first: float, last: float, by: float, dtype: DType, op: str) -> np.ndarray[Any, Any]:
    info = mx.iinfo(dtype.mlx_)
    for value in (first, last, by):
        if value != int(value):
            raise ArgumentValueError(f"{op}: got {value} beside {dtype}; takes integers")
    start, end, step = int(first), int(last), int(by)
    _check_count((end - start) // step, [start, end, step], op)
    found = range(start, end, step)
    if found and not (info.min <= min(found[0], found[-1]) and max(found[0], found[-1]) <= info.max):
        raise ArgumentValueError(
            f"{op}: {found[0]} to {found[-1]} leave {dtype}; takes integers from {info.min} to {info.max}"
        )
    # The product may leave 64 bits, the sum then comes back into them.
    values: np.ndarray[Any, Any] = np.arange(len(found), dtype=np.int64)
    values *= np.int64(_wrapped(step))
    values += np.int64(_wrapped(start))
    return values


def _wrapped(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def _rounding(dtype: DType) -> Any:
    """A function that gives a number as the dtype holds it."""
    if dtype is DType.BF16:
        return lambda value: np.float32(float(mx.array(float(value), mx.bfloat16)))
    return {DType.F16: np.float16, DType.F32: np.float32, DType.F64: np.float64}[dtype]


def _stuck(current: Any, by: Any, dtype: DType, op: str) -> Error:
    return ArgumentValueError(
        f"{op}: adding {by} to {current} changes nothing in {dtype}; takes a larger step or a wider dtype"
    )


def _accumulated(first: Any, last: Any, by: Any, dtype: DType, op: str) -> np.ndarray[Any, Any]:
    """F32 and F64: a running sum, a chunk at a time, since rounding decides how many numbers there are."""
    found: list[np.ndarray[Any, Any]] = []
    current = first
    while True:
        count = 2 + int(max(0.0, min((float(last) - float(current)) / float(by), _CHUNK)))
        run = np.full(count, by, type(first))
        run[0] = current
        with np.errstate(over="ignore"):
            run = np.add.accumulate(run)
        before = run < last if by > 0 else run > last
        if not before.all():
            found.append(run[: int(before.argmin())])
            return np.concatenate(found)
        if run[-1] == run[-2]:
            raise _stuck(run[-1], by, dtype, op)
        found.append(run[:-1])
        current = run[-1]


def _halves(first: Any, last: Any, by: Any, dtype: DType, op: str) -> np.ndarray[Any, Any]:
    """F16 and BF16: at most as many numbers as 16 bits can tell apart."""
    rounded = _rounding(dtype)
    found, current = [], first
    with np.errstate(over="ignore"):
        while current < last if by > 0 else current > last:
            found.append(current)
            following = rounded(np.float32(current) + np.float32(by))
            if following == current:
                raise _stuck(current, by, dtype, op)
            current = following
    return np.array(found, type(first))

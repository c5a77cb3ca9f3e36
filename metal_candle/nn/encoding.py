"""Encodings of ids. candle: ``candle_nn::encoding``."""

from __future__ import annotations

from typing import Any, TypeVar

from ..dtype import DType, DTypeLike
from ..graph.operations.counts import integer, number
from ..graph.operations.one_hot import OneHot
from ..tensor.arguments import expect_tensor
from ..tensor.data import as_array

T = TypeVar("T", bound=Any)


def one_hot(indices: T, depth: int, on_value: float, off_value: float, *, dtype: DTypeLike | None = None) -> T:
    """Ids ``(…)`` to ``(…, depth)``: ``on_value`` at the place that an id names, ``off_value`` everywhere else.

    An id of -1 gives a row of ``off_value`` alone. The result is of ``dtype``, which in candle is that of the values:
    by default I64 for two integers, else F32. Ids are U8, U32, I32 or I64. No gradient passes.

    Raises ``InvalidIndexError`` for an id below -1 or from ``depth`` on (of lazy ids when they are evaluated),
    ``UnsupportedDTypeForOpError`` for floats, ``ShapeMismatchError`` for a negative depth, ``ArgumentTypeError`` for
    values that are no numbers and ``Error`` for those that do not fit ``dtype``.
    """
    expect_tensor("one_hot", indices)
    depth = integer("one_hot", "depth", depth, 0)
    for name, value in (("on_value", on_value), ("off_value", off_value)):
        number("one_hot", name, value)
    values: Any = as_array([on_value, off_value], dtype, "one_hot")
    result: T = indices._record(OneHot(depth, values[0].item(), values[1].item(), DType.of(values.dtype)))
    return result

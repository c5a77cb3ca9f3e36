"""Plain numbers among an operation's arguments: lengths, steps, shifts."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import ArgumentTypeError, ArgumentValueError, ShapeMismatchError, expect
from ...error.text import described


def integer(op: str, name: str, value: Any, least: int | None = None) -> int:
    """``error.expect.integer`` of a size: raises ``ShapeMismatchError`` for less than ``least``."""
    count = expect.integer(op, name, value)
    if least is not None and count < least:
        raise ShapeMismatchError(f"{op}: got {name} {described(count)}; takes {least} or more")
    return count


def number(op: str, name: str, value: Any, takes: str = "a number") -> float:
    """A real number, also NumPy's or MLX's, as a float.

    Raises ``ArgumentTypeError``, ``ArgumentValueError`` for an integer too large.
    """
    plain = value
    if isinstance(value, (np.ndarray, mx.array)) and value.ndim == 0:
        plain = value.item()
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise ArgumentTypeError(f"{op}: got {described(value)} for {name}; takes {takes}")
    try:
        return float(plain)
    except OverflowError:
        raise ArgumentValueError(f"{op}: got {described(value)} for {name}; takes a number a float holds") from None


def epsilon(op: str, value: Any) -> float:
    """What a norm adds below its root. Raises as ``number``, and ``ArgumentValueError`` unless it is finite from 0."""
    eps = number(op, "eps", value)
    if not 0 <= eps < math.inf:
        raise ArgumentValueError(f"{op}: got {eps} for eps; takes a finite number from 0")
    return eps

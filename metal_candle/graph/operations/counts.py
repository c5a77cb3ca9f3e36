"""Plain numbers among an operation's arguments: lengths, steps, shifts."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

from ...error import ArgumentTypeError, ShapeMismatchError
from ...error.text import described


def integer(op: str, name: str, value: Any, least: int | None = None) -> int:
    """``value`` as an int. Raises ``ArgumentTypeError``, ``ShapeMismatchError`` for less than ``least``."""
    try:
        count: int | None = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise ArgumentTypeError(f"{op}: got {name} {described(value)}; takes an integer")
    if least is not None and count < least:
        raise ShapeMismatchError(f"{op}: got {name} {described(count)}; takes {least} or more")
    return count


def number(op: str, name: str, value: Any) -> float:
    """``value`` as a float. Raises ``ArgumentTypeError``."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ArgumentTypeError(f"{op}: got {name} {described(value)}; takes a number")
    return float(value)

"""Plain numbers among an operation's arguments: lengths, steps, shifts."""

from __future__ import annotations

import operator
from typing import Any

from ...error import ArgumentTypeError, ShapeMismatchError
from ...error.text import described


def integer(op: str, name: str, value: Any, least: int | None = None) -> int:
    """``value`` as an int. Raises ``ArgumentTypeError``, ``ShapeMismatchError`` for less than ``least``."""
    try:
        number: int | None = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ArgumentTypeError(f"{op}: got {name} {described(value)}; takes an integer")
    if least is not None and number < least:
        raise ShapeMismatchError(f"{op}: got {name} {described(number)}; takes {least} or more")
    return number

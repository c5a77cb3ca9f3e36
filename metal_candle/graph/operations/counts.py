"""Plain numbers among an operation's arguments: lengths, steps, shifts."""

from __future__ import annotations

import operator
from typing import Any

from ...error import ArgumentTypeError, ShapeMismatchError
from ...error.text import described


def integer(op: str, name: str, value: Any, least: int | None = None) -> int:
    """``value`` as an int. Raises ``ArgumentTypeError``, ``ShapeMismatchError`` for less than ``least``."""
    try:
        number = operator.index(None if isinstance(value, bool) else value)
    except TypeError:
        raise ArgumentTypeError(f"{op}: got {name} {described(value)}; takes an integer") from None
    if least is not None and number < least:
        raise ShapeMismatchError(f"{op}: got {name} {described(number)}; takes {least} or more")
    return number

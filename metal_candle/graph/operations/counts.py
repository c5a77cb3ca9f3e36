"""Plain numbers among an operation's arguments: lengths, steps, shifts."""

from __future__ import annotations

import operator
from typing import Any

from ...error import ShapeMismatchError


def integer(op: str, name: str, value: Any, least: int | None = None) -> int:
    """``value`` as an int. Raises ``ShapeMismatchError`` for another type and for less than ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ShapeMismatchError(f"{op}: got {name} {value!r}; takes an integer")
    number = operator.index(value)
    if least is not None and number < least:
        raise ShapeMismatchError(f"{op}: got {name} {number}; takes {least} or more")
    return number

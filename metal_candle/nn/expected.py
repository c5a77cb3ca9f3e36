"""What a layer's constructor takes."""

from __future__ import annotations

from typing import TypeVar

from ..error import ArgumentTypeError
from ..error.text import described

C = TypeVar("C")


def expect_config(op: str, config: C, kind: type[C]) -> C:
    """The config itself. Raises ``ArgumentTypeError`` for what is none of its kind."""
    if not isinstance(config, kind):
        raise ArgumentTypeError(f"{op}: got config {described(config)}; takes a {kind.__name__}")
    return config

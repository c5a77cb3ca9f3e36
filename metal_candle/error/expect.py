"""Arguments of a wrong type, told where they are given: the operation, what it got, what it takes."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, TypeVar

from .tensor import ArgumentTypeError, ArgumentValueError
from .text import described

C = TypeVar("C")


def expect(op: str, given: object, kind: type[Any] | tuple[type[Any], ...], takes: str, name: str = "") -> None:
    """Raise ``ArgumentTypeError`` unless ``given`` is of a kind; ``name`` says which of several arguments it is."""
    if not isinstance(given, kind):
        raise wrong(op, given, takes, name)


def expect_config(op: str, config: C, kind: type[C]) -> C:
    """The config itself. Raises ``ArgumentTypeError`` unless it is of its kind."""
    expect(op, config, kind, f"a {kind.__name__}", "config")
    return config


def expect_path(op: str, given: object, takes: str = "a path", name: str = "") -> None:
    """Raise ``ArgumentTypeError`` unless it is a text or a path."""
    expect(op, given, (str, PathLike), takes, name)


def expect_function(op: str, given: object, name: str) -> None:
    """Raise ``ArgumentTypeError`` unless it can be called or is ``None``."""
    if given is not None and not callable(given):
        raise wrong(op, given, "a function or None", name)


def listed(op: str, given: Any, takes: str, name: str = "") -> list[Any]:
    """What can be iterated over as a list. Raises ``ArgumentTypeError`` for anything else, a text and a dict too."""
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise wrong(op, given, takes, name)
    return list(given)


def wrong(op: str, given: object, takes: str, name: str = "") -> ArgumentTypeError:
    """The error of an argument of another type; not raised."""
    return ArgumentTypeError(f"{op}: got {name + ' ' if name else ''}{described(given)}; takes {takes}")


def integer(op: str, name: str, value: Any, least: int | None = None) -> int:
    """``value``, an integer of any type, as an ``int``.

    Raises ``ArgumentTypeError`` for anything else, booleans included, and ``ArgumentValueError`` below ``least``.
    """
    takes = "an integer" if least is None else f"an integer from {least}"
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = None
    if count is None:
        raise wrong(op, value, takes, name)
    if least is not None and count < least:
        raise ArgumentValueError(f"{op}: got {name} {described(count)}; takes {takes}")
    return count

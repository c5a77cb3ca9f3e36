"""What arguments may be, and the error where they are not: the operation, what it got, what it takes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from os import PathLike
from typing import Any, NamedTuple, TypeVar

from .tensor import ArgumentTypeError, ArgumentValueError
from .text import described

C = TypeVar("C")


class Kind(NamedTuple):
    """What an argument may be: in words, and as a condition."""

    takes: str
    holds: Callable[[Any], bool]


def a(kind: type[Any] | tuple[type[Any], ...], takes: str = "") -> Kind:
    """An object of a class, in other words than its name where they are given: ``a(LoRAAdapter)``.

    Several classes need words.
    """
    name = takes or getattr(kind, "__name__", "")
    words = takes or f"{'an' if name[0] in 'AEIO' else 'a'} {name}"
    return Kind(words, lambda value: isinstance(value, kind))


def optional(kind: Kind) -> Kind:
    """``None``, or what ``kind`` takes."""
    return Kind(f"{kind.takes} or None", lambda value: value is None or kind.holds(value))


def _is_list(value: object) -> bool:
    """Whether it has a length and places, as a data set of one's own has them too."""
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return sized and not isinstance(value, (str, bytes, Mapping))


def list_of(kind: type, takes: str) -> Kind:
    """Several objects of a class."""
    return Kind(takes, lambda value: _is_list(value) and all(isinstance(each, kind) for each in value))


INTEGER = Kind("an integer", lambda value: isinstance(value, Integral) and not isinstance(value, bool))
COUNT = Kind("an integer from 0", lambda value: INTEGER.holds(value) and value >= 0)
NUMBER = Kind("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool))
FLAG = a(bool, "True or False")
TEXT = a(str, "a text")
PATH = a((str, PathLike), "a path")
FUNCTION = Kind("a function", callable)
LIST = Kind("a list", _is_list)
DICT = a(Mapping, "a dict")


def expect(op: str, given: object, kind: Kind, name: str = "") -> None:
    """Raise ``ArgumentTypeError`` unless ``given`` is of a kind; ``name`` says which of several arguments it is."""
    if not kind.holds(given):
        raise wrong(op, given, kind.takes, name)


def expect_config(op: str, config: C, kind: type[C]) -> C:
    """The config itself. Raises ``ArgumentTypeError`` unless it is of its kind."""
    expect(op, config, a(kind), "config")
    return config


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

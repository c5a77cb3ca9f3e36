"""What the functions of training take, declared: ``@takes(steps=INTEGER)`` refuses anything else before the call.

Checks inside a function, and those that make an argument plain, are ``error.expect``'s.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from os import PathLike
from typing import Any, NamedTuple, ParamSpec, TypeVar

from ..error import TrainingError
from ..error.expect import wrong
from ..files import is_bad_name

P = ParamSpec("P")
R = TypeVar("R")


class Kind(NamedTuple):
    """What an argument may be: in words, and as a condition."""

    takes: str
    holds: Callable[[Any], bool]

    def expect(self, op: str, name: str, value: object) -> None:
        """Raise ``ArgumentTypeError`` for a value of another kind."""
        if not self.holds(value):
            raise wrong(op, value, self.takes, name)


def a(kind: type, takes: str = "") -> Kind:
    """An object of a class, in other words than its name where they are given: ``a(LoRAAdapter)``."""
    name = kind.__name__
    return Kind(takes or f"{'an' if name[0] in 'AEIO' else 'a'} {name}", lambda value: isinstance(value, kind))


def optional(kind: Kind) -> Kind:
    """``None``, or what ``kind`` takes."""
    return Kind(f"{kind.takes}, or None", lambda value: value is None or kind.holds(value))


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
PATH = Kind("a path", lambda value: isinstance(value, (str, PathLike)) and not is_bad_name(value))
FUNCTION = Kind("a function", callable)
LIST = Kind("a list", _is_list)
DICT = a(Mapping, "a dict")


def takes(**kinds: Kind) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function raise ``ArgumentTypeError`` for arguments, by name, that are of another kind."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        op = function.__qualname__.removesuffix(".__init__")
        names = list(inspect.signature(function).parameters)
        places = [(names.index(name), name, kind) for name, kind in kinds.items()]

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for place, name, kind in places:
                if place < len(args):
                    kind.expect(op, name, args[place])
                elif name in kwargs:
                    kind.expect(op, name, kwargs[name])
            return function(*args, **kwargs)

        return checked

    return decorate


def at_least(op: str, least: int, **values: int) -> None:
    """Raise ``TrainingError.InvalidConfig`` for the first of some numbers that is less."""
    for name, value in values.items():
        if value < least:
            raise TrainingError.InvalidConfig(reason=f"{op}: {name} is {value}; takes at least {least}")

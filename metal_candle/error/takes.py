"""``@takes(steps=INTEGER)``: a function that refuses arguments of another kind before it is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from .expect import Kind, expect

P = ParamSpec("P")
R = TypeVar("R")


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
                    expect(op, args[place], kind, name)
                elif name in kwargs:
                    expect(op, kwargs[name], kind, name)
            return function(*args, **kwargs)

        return checked

    return decorate

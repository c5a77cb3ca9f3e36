"""Rust's names of constructors: ``Type::new`` and ``Type::default``."""

from __future__ import annotations

from typing import Any, TypeVar

from ..error import ArgumentTypeError
from ..error.text import described

C = TypeVar("C")
N = TypeVar("N", bound="New")
D = TypeVar("D", bound="Default")


class New:
    """Base of what candle makes by ``Type::new``."""

    @classmethod
    def new(cls: type[N], *args: Any, **kwargs: Any) -> N:
        """The constructor, as candle spells it."""
        return cls(*args, **kwargs)


class Default:
    """Base of what candle makes by ``Type::default``."""

    @classmethod
    def default(cls: type[D]) -> D:
        """The constructor without arguments, as candle spells it."""
        return cls()


def expect_config(op: str, config: C, kind: type[C]) -> C:
    """The config itself. Raises ``ArgumentTypeError`` for what is none of its kind."""
    if not isinstance(config, kind):
        raise ArgumentTypeError(f"{op}: got config {described(config)}; takes a {kind.__name__}")
    return config

"""Rust's names of constructors: ``Type::new`` and ``Type::default``."""

from __future__ import annotations

from typing import Any, TypeVar

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

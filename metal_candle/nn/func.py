"""Functions as modules. candle: ``candle_nn::func``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..error import ArgumentTypeError
from ..error.text import described
from .module import Module, ModuleT, T

F = TypeVar("F", bound=Callable[..., Any])


class Func(Module):
    """A function of a tensor as a module. candle: ``candle_nn::Func``."""

    def __init__(self, f: Callable[[Any], Any]) -> None:
        self._f = _expect_function("func", f)

    def forward(self, xs: T) -> T:
        """The function's value."""
        result: T = self._f(xs)
        return result


class FuncT(ModuleT):
    """A function of a tensor and of whether it is for training. candle: ``candle_nn::FuncT``."""

    def __init__(self, f: Callable[[Any, bool], Any]) -> None:
        self._f = _expect_function("func_t", f)

    def forward_t(self, xs: T, train: bool) -> T:
        """The function's value."""
        result: T = self._f(xs, train)
        return result


def func(f: Callable[[Any], Any]) -> Func:
    """A module that computes ``f(xs)``. candle: ``candle_nn::func``."""
    return Func(f)


def func_t(f: Callable[[Any, bool], Any]) -> FuncT:
    """A module that computes ``f(xs, train)``. candle: ``candle_nn::func_t``."""
    return FuncT(f)


def _expect_function(op: str, f: F) -> F:
    if not callable(f):
        raise ArgumentTypeError(f"{op}: got {described(f)}; takes a function")
    return f

"""The root of all errors of the package."""

from __future__ import annotations

from typing import Any


class Error(Exception):
    """Root of all errors of this package. candle: ``candle_core::Error``."""

    def __str__(self) -> str:
        # KeyError, a parent of some kinds, would show the text's repr, and OSError its number.
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        # What is copied or comes from another process would else be made by the constructor, of the text.
        return _made, (type(self), self.args), vars(self)

    @classmethod
    def msg(cls, text: object) -> Error:
        """An error with a message of its own. candle: ``Error::msg``."""
        return Error(str(text))

    @staticmethod
    def wrap(error: BaseException) -> Error:
        """An error that shows another one's text and has it as its cause. candle: ``Error::wrap``."""
        wrapped = Error(str(error))
        wrapped.__cause__ = error
        return wrapped

    def context(self, text: object) -> Error:
        """The same error, of the same kind, with a text before its own. candle: ``Error::context``."""
        return _prefixed(self, str(text))

    def with_path(self, path: object) -> Error:
        """The same error, of the same kind, with a file's path before its text. candle: ``Error::with_path``."""
        return _prefixed(self, str(path))


def _made(kind: type[Error], args: tuple[Any, ...]) -> Error:
    """An error of a kind whose constructor takes fields, not a text: without it, and without the fields."""
    # Of the base that says how it lies in memory: the first in the order of look-up may be MemoryError, which does not.
    error: Error = kind.__base__.__new__(kind, *args)
    error.args = args
    return error


def _prefixed(error: Error, prefix: str) -> Error:
    other = _made(type(error), (f"{prefix}: {error}",))
    other.__dict__.update(error.__dict__)
    other.__cause__ = error
    return other

"""The root of all errors of the package."""

from __future__ import annotations


class Error(Exception):
    """Root of all errors of this package. candle: ``candle_core::Error``."""

    def __str__(self) -> str:
        # KeyError, a parent of some kinds, would show the text's repr, and OSError its number.
        return str(self.args[0]) if self.args else ""

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


def _prefixed(error: Error, prefix: str) -> Error:
    kind = type(error)
    # The kind's own constructor takes fields, not a text; its fields stay as they are.
    other = kind.__new__(kind, str(error))
    other.__dict__.update(error.__dict__)
    other.args = (f"{prefix}: {error}",)
    other.__cause__ = error
    return other

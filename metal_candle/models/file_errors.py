"""Files that cannot be opened or read, as errors of loading a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..error import IoError, ModelError, NotFoundError


@contextmanager
def model_file_errors() -> Iterator[None]:
    """Raise ``ModelError.FileNotFound`` for ``NotFoundError``, ``ModelError.InvalidFormat`` for ``IoError``."""
    try:
        yield
    except NotFoundError as error:
        raise ModelError.FileNotFound(path=error) from error
    except IoError as error:
        raise ModelError.InvalidFormat(reason=error) from error

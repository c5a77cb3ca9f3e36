"""Files that cannot be read, and weights that do not fit their configuration, as errors of loading a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..error import CannotFindTensorError, IoError, ModelError, NotFoundError, UnexpectedShapeError
from ..error.text import first_few


@contextmanager
def model_file_errors() -> Iterator[None]:
    """Raise ``ModelError.FileNotFound`` for ``NotFoundError``, ``ModelError.InvalidFormat`` for ``IoError``."""
    try:
        yield
    except NotFoundError as error:
        raise ModelError.FileNotFound(path=error) from error
    except IoError as error:
        raise ModelError.InvalidFormat(reason=error) from error


@contextmanager
def misfit_errors() -> Iterator[None]:
    """Raise ``ModelError.InvalidFormat`` for a tensor that a network lacks, ``ShapeMismatch`` for another shape."""
    try:
        yield
    except CannotFindTensorError as error:
        raise ModelError.InvalidFormat(reason=f"{error}; the weights do not fit config.json") from error
    except UnexpectedShapeError as error:
        raise ModelError.ShapeMismatch(name=error.name, expected=error.expected, actual=error.got) from error


def expect_all_used(unused: Sequence[str]) -> None:
    """Raise ``ModelError.InvalidFormat``, which names them, for tensors that the network has no place for."""
    if unused:
        raise ModelError.InvalidFormat(reason=f"weights that config.json has no place for: {first_few(unused, 5)}")

"""Importance matrices. candle: ``candle_core::quantized::imatrix_file``."""

from __future__ import annotations

from ..formats.byte_reader import Source
from ..formats.imatrix import read_imatrix

__all__ = ["load_imatrix"]


def load_imatrix(path: Source) -> dict[str, list[float]]:
    """A file's weights by tensor name, one per column, each divided by the number of calls.

    Raises ``NotFoundError``, ``IoError`` and ``ModelError.InvalidFormat``. candle: ``load_imatrix``.
    """
    return read_imatrix(path)

"""What users and callbacks give to be written, as values that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from ..error import ArgumentTypeError
from ..error.text import described, shown


def json_value(value: object, name: str) -> Any:
    """``value`` with Python's numbers in the place of NumPy's and of arrays without dims, NumPy's and MLX's.

    Raises ``ArgumentTypeError``, which names the place within ``name``, for what JSON cannot hold.
    """
    try:
        return _plain(value, name)
    except RecursionError as error:
        raise ArgumentTypeError(f"{name} is nested too deeply, or holds itself") from error


def _plain(value: object, name: str) -> Any:
    if isinstance(value, (np.generic, np.ndarray, mx.array)) and value.ndim == 0:
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(each, f"{name}[{i}]") for i, each in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not (key is None or isinstance(key, (bool, int, float, str))):
                raise ArgumentTypeError(f"{name} has the key {described(key)}; takes texts and Python's numbers")
        return {key: _plain(each, f"{name}[{shown(repr(key))}]") for key, each in value.items()}
    raise ArgumentTypeError(f"{name} is {described(value)}; takes what JSON can hold: numbers, texts, lists, dicts")

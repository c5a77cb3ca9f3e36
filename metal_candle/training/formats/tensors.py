"""The tensors of adapter files: read whole, paired, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import mlx.core as mx

from ...error import CheckpointError, Error
from ...error.expect import a, optional
from ...error.text import shown
from ...formats import safetensors
from .stored import Pair, in_order

FLOATS = ("F32", "BF16", "F16")
"""The dtypes of factors."""

OPENED = optional(a(safetensors.Reader, "a file that is open, a safetensors.Reader"))


def invalid(source: object, reason: str) -> CheckpointError:
    """The error for files that are no adapter, of a kind that is not supported, or contradict themselves."""
    return CheckpointError.InvalidFormat(reason=f"{source}: {reason}")


def unreadable(reason: str) -> CheckpointError:
    """The error for files that are missing, truncated or damaged."""
    return CheckpointError.LoadFailed(reason=reason)


@contextmanager
def reading() -> Iterator[None]:
    """Raise ``CheckpointError.LoadFailed`` for what goes wrong in the block when a file is read."""
    try:
        yield
    except CheckpointError:
        raise
    except (Error, OSError) as error:
        raise unreadable(str(error).removeprefix("invalid model format: ")) from error


def open_tensors(path: str | PathLike[str]) -> safetensors.Reader:
    """A file with its header checked, held open: it stays what it is when another takes its name.

    Raises ``CheckpointError.LoadFailed``.
    """
    with reading():
        return safetensors.Reader(path)


def read_pairs(file: safetensors.Reader, factor: re.Pattern[str], takes: str) -> dict[str, Pair]:
    """Module path to its A and B as they stand in the file; ``factor`` has the groups ``path`` and ``factor``.

    Raises ``CheckpointError.InvalidFormat`` for a tensor that is no factor, naming what it is, and for a factor
    without the other; ``CheckpointError.LoadFailed`` for a file that is cut short meanwhile.
    """
    found: dict[str, dict[str, str]] = {}
    for key, info in file.header.tensors.items():
        match = factor.fullmatch(key)
        if match is None:
            raise invalid(file.source, f"tensor {shown(key)} {what_is(key)}; takes {takes}")
        if info.dtype not in FLOATS:
            raise invalid(file.source, f"tensor {shown(key)} is {info.dtype}; takes {', '.join(FLOATS)}")
        found.setdefault(match["path"], {})[match["factor"].upper()] = key
    if not found:
        raise invalid(file.source, "holds no LoRA factors")
    for module, keys in found.items():
        if len(keys) == 1:
            there, lacking = ("A", "B") if "A" in keys else ("B", "A")
            raise invalid(file.source, f"{module} has lora_{there} but no lora_{lacking}; save the adapter again")
    modules = sorted(found, key=in_order)
    with reading():
        arrays = file.arrays()
    pairs = {module: (arrays[found[module]["A"]], arrays[found[module]["B"]]) for module in modules}
    mx.eval(list(pairs.values()))  # only this thread can
    return pairs


def what_is(key: str) -> str:
    """What a tensor that is no LoRA factor of a linear map is, for an error: DoRA's magnitudes …"""
    last = key.rpartition(".")[2]
    if "lora_magnitude_vector" in key or last == "m":
        return "is a magnitude of DoRA, which is not supported"
    if "lora_embedding_" in key:
        return "adapts an embedding, which is not supported"
    if "lora_" in key and last == "bias":
        return "is a bias (lora_bias), which is not supported"
    if last == "bias":
        return "is a trained bias, which is not supported"
    if "lora_" not in key.lower() and last == "weight":
        return "is a whole weight (modules_to_save, or full fine-tuning), which is not supported"
    return "is not a LoRA factor of a linear layer"


# --- numbers of configurations ----------------------------------------------------------------


def a_rank(source: object, value: Any, name: str) -> int:
    """A whole number above 0. Raises ``CheckpointError.InvalidFormat``."""
    if type(value) is not int or value < 1:
        raise invalid(source, f"{name} is {'missing' if value is None else repr(value)}; takes an integer above 0")
    return value


def a_factor(source: object, value: Any, name: str) -> float:
    """A finite number above 0: an alpha or a scale. Raises ``CheckpointError.InvalidFormat``."""
    try:
        good = type(value) in (int, float) and 0 < float(value) < math.inf
    except OverflowError:  # an integer that no double holds
        good = False
    if not good:
        raise invalid(source, f"{name} is {'missing' if value is None else shown(repr(value))}; takes a number above 0")
    return float(value)


def a_dropout(source: object, value: Any, name: str) -> float:
    """A number from 0 to below 1. Raises ``CheckpointError.InvalidFormat``."""
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise invalid(source, f"{name} is {'missing' if value is None else repr(value)}; takes 0 <= dropout < 1")
    return float(value)


def names_or_none(source: object, value: Any, name: str) -> tuple[str, ...] | None:
    """A list of texts, sorted, or ``None``. Raises ``CheckpointError.InvalidFormat``."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise invalid(source, f"{name} is {value!r}; takes a list of names")
    return tuple(sorted(value))


def layers_or_none(source: object, value: Any, name: str) -> tuple[int, ...] | None:
    """A list of block numbers, or one, or ``None``. Raises ``CheckpointError.InvalidFormat``."""
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [value]
    if not all(type(each) is int and each >= 0 for each in numbers):
        raise invalid(source, f"{name} is {value!r}; takes numbers of layers")
    return tuple(sorted(numbers)) or None

"""A bound on the freed memory that MLX keeps for later use, while something runs whose arrays change their sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import mlx.core as mx

from .. import settings
from ..error import ArgumentValueError
from .memory import device_memory

MOST = 4 << 30
"""Bytes of the default bound; less where an eighth of the device's memory is less."""
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

# The limit that was there, and those of the blocks that are under way: of several threads, in any order.
_limits: list[int] = []
_lock = RLock()


def cache_limit() -> int | None:
    """The bound that ``METAL_CANDLE_CACHE_LIMIT`` sets, by default that of ``MOST``; ``None`` if it is ``off``.

    Raises ``ArgumentValueError`` for a value that is no number of bytes.
    """
    value = settings.CACHE_LIMIT.value.strip().lower()
    if value == "off":
        return None
    if not value:
        return min(MOST, device_memory() // 8)
    match = re.fullmatch(r"(\d+)\s*([kmg]?)i?b?", value)
    if match is None:
        raise ArgumentValueError(
            f"{settings.CACHE_LIMIT.name}: got {value!r}; takes bytes like 500000000, 512M or 2G, or off"
        )
    return int(match[1]) * _UNITS[match[2]]


@contextmanager
def bounded_cache(limit: int | None = None) -> Iterator[None]:
    """MLX keeps at most ``limit`` bytes of freed memory inside, by default ``cache_limit()``; never more than before.

    MLX reuses freed memory for arrays of about the same size only. Where sizes change from batch to batch it would
    keep memory of all of them; on Apple's GPUs up to what the system recommends to use at all.
    """
    wanted = cache_limit() if limit is None else limit
    if wanted is None:
        yield
        return
    with _lock:
        before = mx.set_cache_limit(wanted)
        if not _limits:
            _limits.append(before)
        _limits.append(wanted)
        mx.set_cache_limit(min(_limits))
        if mx.get_cache_memory() > min(_limits):
            mx.clear_cache()
    try:
        yield
    finally:
        with _lock:
            _limits.remove(wanted)
            mx.set_cache_limit(min(_limits))
            if len(_limits) == 1:
                _limits.clear()

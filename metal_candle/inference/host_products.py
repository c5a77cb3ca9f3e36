"""Products of few rows with large weights in NumPy: for one token on the CPU each weight is read once, as it lies."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from math import gcd
from typing import Any

import numpy as np

PART = 1 << 20
"""Least products that are worth another thread: 0.2 ms of reading a weight against 0.05 ms of waking it."""

PACKED_PART = 1 << 23
"""As ``PART``, of packed numbers: two threads that take turns in many short calls wait for Python's lock."""

FEW = 8
"""Rows up to which a dot product for each is no slower than a BLAS's matrix-matrix product."""

# Numbers that are unpacked at a time: fewer calls against more of them in a core's cache.
_BLOCK = 1 << 19


def linear(x: Any, weight: Any) -> Any:
    """``x · weightᵀ``: ``(…, in)`` and ``(out, in)`` to ``(…, out)``.

    A dot product per row of the weight and of ``x``, in NumPy: 16 to 20 GB/s on one thread for one row of ``x``, 8 for
    eight. A BLAS's matrix-vector product is no faster (14 to 25 GB/s on two threads), its matrix-matrix product, which
    copies the weight first, takes 10 GB/s for eight rows, and both fall to 0.5 GB/s when their threads wait for each
    other on a busy machine.
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > FEW:
        return (rows @ weight.T).reshape(*x.shape[:-1], len(weight))
    columns = rows.T

    def multiply(part: slice) -> Any:
        return np.matmul(weight[part, None, :], columns)[:, 0]

    out = _by_parts(multiply, rows, len(weight), weight.size * len(rows), PART)
    return out.reshape(*x.shape[:-1], len(weight))


def packed_linear(x: Any, codes: Any, scales: Any, biases: Any, bits: int, group: int, mode: str) -> Any:
    """``linear`` with a weight in MLX's affine quantisation, of which a block at a time is unpacked.

    Of few rows each group is multiplied as it is coded and scaled then, ``scale · (code · x) + bias · Σ x``. On one
    thread that takes 0.3 ns a number of 8 bits and 0.65 of 4, where MLX's quantised product takes 1.0 to 1.3; of 5
    bits some 2, where MLX takes 23.
    """
    rows = x.reshape(-1, x.shape[-1])
    groups, places = scales.shape[1], _places(bits)
    each = group // places
    # What meets the codes of each place: (groups, group / places, rows).
    columns = [
        rows[:, place::places].reshape(len(rows), groups, each).transpose(1, 2, 0).copy() for place in range(places)
    ]
    sums = rows.reshape(len(rows), groups, group).sum(2).T

    def multiply_few(block: slice) -> Any:
        scale, bias = scales[block].astype(np.float32), biases[block].astype(np.float32)
        numbers = _room("numbers", np.float32, (len(scale), x.shape[-1] // places))
        by_group = numbers.reshape(len(scale), groups, each).swapaxes(0, 1)
        by_code: Any = None
        for column, plane in zip(columns, _planes(codes[block], bits)):
            numbers[...] = plane
            product = np.matmul(by_group, column)
            by_code = product if by_code is None else np.add(by_code, product, out=by_code)
        by_code *= scale.T[:, :, None]
        return by_code.sum(0) + bias @ sums

    def multiply_many(block: slice) -> Any:
        return unpacked(codes[block], scales[block], biases[block], bits, group) @ rows.T

    multiply, step = multiply_few if len(rows) <= FEW else multiply_many, max(1, _BLOCK // x.shape[-1])

    def multiply_blocks(part: slice) -> Any:
        starts = range(part.start, part.stop, step) or [part.start]
        return np.concatenate([multiply(slice(start, min(start + step, part.stop))) for start in starts])

    out = _by_parts(multiply_blocks, rows, len(codes), len(codes) * x.shape[-1], PACKED_PART)
    return out.reshape(*x.shape[:-1], len(codes))


def packed_rows(ids: Any, codes: Any, scales: Any, biases: Any, bits: int, group: int, mode: str) -> Any:
    """The rows of a packed table ``(n, in)`` for ids ``(…)``: ``(…, in)``."""
    flat = ids.reshape(-1)
    rows = unpacked(codes[flat], scales[flat], biases[flat], bits, group)
    return rows.reshape(*ids.shape, rows.shape[-1])


def unpacked(codes: Any, scales: Any, biases: Any, bits: int, group: int) -> Any:
    """The numbers of a weight in MLX's affine quantisation, float32: ``(rows, in · bits / 32)`` to ``(rows, in)``."""
    places = _places(bits)
    numbers = np.empty((len(codes), scales.shape[1] * group), np.float32)
    for place, plane in enumerate(_planes(codes, bits)):
        numbers[:, place::places] = plane
    by_group = numbers.reshape(len(codes), -1, group)
    by_group *= scales.astype(np.float32)[:, :, None]
    by_group += biases.astype(np.float32)[:, :, None]
    return numbers


def _places(bits: int) -> int:
    """After how many codes one begins at a byte's beginning again."""
    return 8 // gcd(8, bits)


def _planes(codes: Any, bits: int) -> Iterator[Any]:
    """The codes ``(rows, in · bits / 32)`` place by place: uint8 ``(rows, in / places)``, each until the next is asked.

    A row is one little-endian stream of bits.
    """
    octets, width = np.ascontiguousarray(codes).view(np.uint8), _places(bits) * bits // 8
    plane = _room("plane", np.uint8, (len(codes), octets.shape[1] // width))
    for place in range(_places(bits)):
        first, shift = divmod(place * bits, 8)
        found, mask = octets[:, first::width], (1 << bits) - 1
        if shift:
            found = np.right_shift(found, shift, out=plane)
        if shift + bits > 8:
            found |= octets[:, first + 1 :: width] << (8 - shift)
        yield found if shift + bits == 8 else np.bitwise_and(found, mask, out=plane)


class _Rooms(threading.local):
    """Memory of each thread for one block: asked anew for each, it would come from the system page by page."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}


_rooms = _Rooms()


def _room(name: str, dtype: Any, shape: tuple[int, int]) -> Any:
    """An array of this shape without values, the same memory at each call."""
    room, count = _rooms.by_name.get(name), shape[0] * shape[1]
    if room is None or room.size < count:
        room = _rooms.by_name[name] = np.empty(count, dtype)
    return room[:count].reshape(shape)


@lru_cache(maxsize=1)
def _threads() -> tuple[ThreadPoolExecutor, int]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(count, thread_name_prefix="metal-candle-host"), count


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _by_parts(multiply: Callable[[slice], Any], rows: Any, size_out: int, work: int, least: int) -> Any:
    """``(rows, size_out)`` by parts, which ``multiply`` gives as ``(part, rows)``, on as many threads as pay."""
    parts = min(work // least, _threads()[1]) if work >= 2 * least else 1
    if parts == 1:
        return multiply(slice(0, size_out)).T
    out = np.empty((len(rows), size_out), rows.dtype)

    def fill(part: slice) -> None:
        out[:, part] = multiply(part).T

    def fill_quietly(part: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # as the plan has it, which holds in its own thread only
            fill(part)

    bounds = [size_out * i // parts for i in range(parts + 1)]
    first, *rest = (slice(*pair) for pair in pairwise(bounds))
    own, others = [first], list[Future[None]]()
    for part in rest:
        try:
            others.append(_threads()[0].submit(fill_quietly, part))
        except RuntimeError:  # no more threads, once the main one has ended: this one does it all
            own.append(part)
    for part in own:
        fill(part)
    for other in others:
        other.result()
    return out

"""Independent work on all cores at once."""

from __future__ import annotations

import contextvars
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

from .. import blas
from ..device import Device
from ..graph.node import helps
from ..tensor import workers

T = TypeVar("T")
R = TypeVar("R")


def count() -> int:
    """How many cores this process may use."""
    return workers.count(Device.Cpu)


@lru_cache(maxsize=1)
def _helpers() -> ThreadPoolExecutor:
    # Kept, as MLX keeps the streams of a thread for good.
    return ThreadPoolExecutor(max(1, count() - 1), "metal-candle-embeddings", helps)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)


def on_all_cores(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``function`` of each item, in order; the calling thread works too, and matrix products take one thread each.

    Two threads begin at the two ends, as neighbours are alike: what the first of a kind prepares is there for the rest.
    Raises what ``function`` raised first, once nothing is under way any more.
    """
    waiting = deque(range(len(items)))
    found: dict[int, R] = {}
    failed: list[BaseException] = []

    def work(take: Callable[[], int]) -> None:
        while True:
            try:
                i = take()
            except IndexError:
                return
            try:
                found[i] = function(items[i])
            except BaseException as error:  # an interrupt too ends the whole
                waiting.clear()
                failed.append(error)

    helpers: list[Future[None]] = []
    with blas.single():
        try:
            for i in range(min(count(), len(items)) - 1):
                context = contextvars.copy_context()  # settings overridden by the caller hold there too
                take = waiting.popleft if i % 2 else waiting.pop
                try:
                    helpers.append(_helpers().submit(context.run, work, take))
                except RuntimeError:  # no more threads, as at the interpreter's end: the caller's does it all
                    break
            work(waiting.popleft)
        finally:
            waiting.clear()
            wait([helper for helper in helpers if not helper.cancel()])
    if failed:
        raise failed[0]
    return [found[i] for i in range(len(items))]

"""The threads that evaluate for ``eval_async`` and the executors.

MLX gives each thread streams of its own, and on the CPU keeps a stream's thread of the operating system for as long as
the process lives. So these threads are kept too, a set for each device that every executor uses: threads that came and
went with their executors would pile up MLX's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..device import Device

# For all that evaluations share. A signal handler or a finalizer may evaluate while its thread is in here.
lock = threading.RLock()
_pools: dict[Device, ThreadPoolExecutor] = {}


class _Here(threading.local):
    worker = False


_here = _Here()


def count(device: Device) -> int:
    """How many evaluations run at once: one for each core this process may use, one on a GPU, which fills itself."""
    if not device.is_cpu():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_worker() -> bool:
    """Whether the calling thread is one of the workers, as in a custom operation or a callback of an evaluation."""
    return _here.worker


def start(device: Device, work: Callable[[], None]) -> bool:
    """Let a worker call ``work`` when one is free; ``False`` where the interpreter is ending and takes no more work."""
    with lock:
        pool = _pools.get(device)
        if pool is None:
            pool = ThreadPoolExecutor(count(device), f"metal-candle-eval-{device.kind.value}", _arrive)
            _pools[device] = pool
    try:
        pool.submit(_call, [work])
    except RuntimeError:
        return False
    return True


def _call(box: list[Callable[[], None]]) -> None:
    # The frames of the pool live as long as an error raised in here, and must not keep the work.
    box.pop()()


def _arrive() -> None:
    _here.worker = True


def _after_fork() -> None:
    """A forked process has none of these threads: it starts its own when it evaluates."""
    global lock
    lock = threading.RLock()
    _pools.clear()
    _here.worker = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

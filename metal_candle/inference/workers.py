"""Threads that compute streams, kept for the next ones.

MLX makes a stream, with a thread of its own, for each thread that computes, and never gives it back: threads made anew
for each generation would add up. And a thread that has used MLX takes Python's lock once more while it ends, after
``join`` has returned: where the interpreter is gone by then, the process aborts. So these threads never end. They are
daemons, and are halted before the interpreter ends, which would end the one that it finds running.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

Job = tuple[Callable[[], Any], "Future[Any]"]
Jobs = SimpleQueue[Job]

_threads: list[Jobs] = []
_idle: list[Jobs] = []
_running: set[Future[Any]] = set()
_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker:
    """A thread's time, until ``release`` or until nothing refers to it: everything submitted runs in that one thread.

    ``stop`` is called when the interpreter ends, from the main thread; what runs then is waited for.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self.stop = stop
        try:
            self._jobs = _idle.pop()
        except IndexError:
            self._jobs = SimpleQueue()
            _threads.append(self._jobs)
            Thread(target=_serve, args=(self._jobs,), name="metal-candle-generate", daemon=True).start()
        self.release = weakref.finalize(self, _idle.append, self._jobs)
        self.release.atexit = False
        _workers.add(self)

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Run ``call`` in the thread, after what was submitted before."""
        future: Future[Any] = Future()
        _running.add(future)
        future.add_done_callback(_running.discard)
        self._jobs.put((call, future))
        return future


def running() -> int:
    """How many calls wait or run."""
    return sum(not future.done() for future in list(_running))


def _serve(jobs: Jobs) -> None:
    while True:
        _run(*jobs.get())


def _run(call: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


@atexit.register
def _halt_all() -> None:
    """Stop what runs, and leave every thread where it does not wait for Python's lock."""
    for worker in list(_workers):
        worker.stop()
    wait(list(_running))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # a thread that has told of its halt keeps Python's lock until it halts
    for jobs in _threads:
        told = Lock()
        told.acquire()
        jobs.put((partial(_halt, told), Future()))
        told.acquire()
    sys.setswitchinterval(interval)


def _halt(told: Lock) -> None:
    never = Lock()
    never.acquire()
    told.release()
    never.acquire()


def _forget() -> None:
    """A forked process has the list of the threads, and none of the threads."""
    _threads.clear()
    _idle.clear()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

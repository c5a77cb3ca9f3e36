"""``Evaluation``: what ``eval_async`` gives, to wait for or to await."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from collections.abc import Coroutine, Generator
from concurrent import futures
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from ..error import ArgumentValueError, Error
from ..graph.operations.counts import number
from . import workers

R = TypeVar("R")


class Evaluation(futures.Future[R], Coroutine[Any, Any, R]):
    """A value on its way: a ``concurrent.futures.Future`` that can also be awaited under asyncio, often and by several.

    ``wait(timeout)`` blocks, ``await`` suspends; both give the value or raise what computing it raised.
    ``done()``, ``cancel()``, ``cancelled()``, ``exception()`` and ``add_done_callback(function)`` are the future's. It
    begins without being waited for. As a coroutine it is what ``asyncio.run`` and ``create_task`` take, and
    ``gather``, ``wait_for`` and ``shield`` as anything that can be awaited.

    ``cancel()`` takes back what has not begun, and gives ``False`` for what has: MLX finishes, and the tensor keeps the
    value. Cancelling a task that awaits raises ``asyncio.CancelledError`` there at once, and cancels the evaluation if
    it has not begun and nobody else waits for it. An error that nobody has asked for when the evaluation is let go is
    logged, by ``metal_candle.eval``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()
        self._waiting = 0
        self._claimed = False
        self._unasked = False
        # Takes the evaluation's graph out of what is in flight, once it is cancelled.
        self._withdraw: Any = None

    def wait(self, timeout: float | None = None) -> R:
        """The value, when it is there.

        Raises what the evaluation raised, ``concurrent.futures.CancelledError`` if it was cancelled, ``TimeoutError``
        if it takes longer than ``timeout`` seconds, which leaves it running, and ``Error`` where it could never come.
        A ``timeout`` of 0 or less does not wait. Raises ``ArgumentTypeError`` for one that is no number.
        """
        try:
            timeout = None if timeout is None else _seconds(timeout)
            if not self.done():
                self._expect()
                self._count(1)
                try:
                    return self.result(timeout)
                except futures.TimeoutError:
                    if not self.done():  # else it may be what the evaluation raised
                        after = f"after {timeout:g} s" if timeout else "yet"
                        raise TimeoutError(f"wait: the evaluation is not done {after}; it goes on") from None
                finally:
                    self._count(-1)
            return self.result()
        finally:
            del self  # an error that refers to this frame must not keep what refers to the error

    def result(self, timeout: float | None = None) -> R:
        """The value, when it is there, or the error; see ``wait``."""
        try:
            return super().result(timeout)
        finally:
            self._unasked = self._unasked and not self.done()
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error, or ``None`` if there is a value, when it is known."""
        try:
            return super().exception(timeout)
        finally:
            self._unasked = self._unasked and not self.done()
            del self

    def set_exception(self, exception: BaseException | None) -> None:
        """The future's: whoever computes the value tells why there is none."""
        self._unasked = True
        super().set_exception(exception)

    def __del__(self) -> None:
        if getattr(self, "_unasked", False) and self._process == os.getpid():
            error = super().exception()
            if error is not None:
                _log.error("an evaluation failed, and nobody asked for its error", exc_info=error)

    def cancel(self) -> bool:
        """Take the evaluation back if it has not begun; whether it is cancelled."""
        if not super().cancel():
            return False
        if self._claim():
            self.set_running_or_notify_cancel()  # tells `concurrent.futures.wait`
            withdraw, self._withdraw = self._withdraw, None
            if withdraw is not None:
                withdraw()
        return True

    def _start(self) -> bool:
        """Whether to compute it now: nobody has cancelled it. Asked once."""
        if not self._claim():
            return False
        self._withdraw = None
        return self.set_running_or_notify_cancel()

    def _claim(self) -> bool:
        """Whether this is the first call: a future takes the step after waiting once only."""
        with workers.lock:
            first, self._claimed = not self._claimed, True
            return first

    def __await__(self) -> Generator[Any, Any, R]:
        try:
            if not self.done():
                yield from self._bell().__await__()
            return self._outcome()
        finally:
            del self

    def send(self, value: Any) -> Any:
        """A step of a task, as a coroutine takes it; several tasks may be at it."""
        try:
            if not self.done():
                return next(iter(self._bell().__await__()))
            raise StopIteration(self._outcome())
        finally:
            del self

    def throw(  # type: ignore[override]
        self, typ: Any, val: BaseException | None = None, tb: TracebackType | None = None
    ) -> Any:
        """Raise in the task that awaits; the evaluation goes on."""
        error = typ if isinstance(typ, BaseException) else val if val is not None else typ()
        raise error if tb is None else error.with_traceback(tb)

    def close(self) -> None:
        """End of a task that awaits; the evaluation goes on."""

    def __repr__(self) -> str:
        if not self.done():
            state = "running" if self.running() else "waiting"
        elif self.cancelled():
            state = "cancelled"
        else:
            error = super().exception()
            state = "done" if error is None else f"raised {type(error).__name__}"
        return f"Evaluation({state})"

    def _outcome(self) -> R:
        try:
            if self.cancelled():
                raise asyncio.CancelledError
            return self.result()
        finally:
            del self

    def _expect(self) -> None:
        """Raise where waiting would never end."""
        if workers.in_worker():
            raise Error(
                "wait: an evaluation waits for another, whose thread it may be using; "
                "record both in one graph, or use eval() here"
            )
        if self._process != os.getpid():
            raise Error("wait: the evaluation runs in the process that this one was forked from; evaluate again here")

    def _count(self, change: int) -> int:
        with workers.lock:
            self._waiting += change
            return self._waiting

    def _bell(self) -> asyncio.Future[None]:
        """A future of the running loop that is done when this is."""
        self._expect()
        loop = asyncio.get_running_loop()
        bell: asyncio.Future[None] = loop.create_future()

        def ring(_: Any) -> None:
            with suppress(RuntimeError):  # of a closed loop, where nobody waits any more
                loop.call_soon_threadsafe(_settle, bell)

        self._count(1)
        bell.add_done_callback(self._heard)
        self.add_done_callback(ring)
        return bell

    def _heard(self, bell: asyncio.Future[None]) -> None:
        if not self._count(-1) and bell.cancelled():
            self.cancel()


_log = logging.getLogger("metal_candle.eval")


def _seconds(timeout: object) -> float:
    seconds = number("wait", "timeout", timeout, "seconds or None")
    if math.isnan(seconds):
        raise ArgumentValueError("wait: got nan for timeout; takes seconds or None")
    return min(max(seconds, 0.0), threading.TIMEOUT_MAX)


def _settle(bell: asyncio.Future[None]) -> None:
    if not bell.done():
        bell.set_result(None)

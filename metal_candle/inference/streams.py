"""Streams that can be stopped from outside, and that run beside an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from ..error.expect import FUNCTION, a, expect, optional
from .workers import Worker

T = TypeVar("T")


class Cancellation:
    """Stops streams that were given it: ``cancel()`` from any thread, a signal handler, or the loop's own body.

    The stream ends before its next token, or its next piece of a prompt; what it gave stays.
    """

    def __init__(self) -> None:
        self._event = threading.Event()

    def __repr__(self) -> str:
        return f"Cancellation(cancelled={self.is_cancelled()})"

    def cancel(self) -> None:
        """Stop. Harmless the second time, and after the end."""
        self._event.set()

    def is_cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._event.is_set()


class Stopped(Exception):
    """A computation was cancelled between two of its pieces."""


def expect_watchers(op: str, cancel: object, progress: object = None) -> None:
    """Raise ``ArgumentTypeError`` for a ``cancel`` that is no ``Cancellation``, a ``progress`` that is no function."""
    expect(op, cancel, optional(a(Cancellation)), "cancel")
    expect(op, progress, optional(FUNCTION), "progress")


async def in_thread(
    stream: Callable[[Cancellation], Iterator[T]], cancel: Cancellation | None = None
) -> AsyncGenerator[T, None]:
    """What ``stream`` yields, each computed in another thread while the event loop runs on.

    However the iterator is left (at its end, early, by an error, by cancelling the task that waits for it) the stream
    is stopped before its next token or piece, and closed; who leaves waits for that.
    """
    expect_watchers("stream", cancel)
    own = Cancellation()
    tokens: Any = stream(own if cancel is None else _Either(own, cancel))
    # All in one thread, from the first to the closing: MLX's streams belong to threads.
    worker = Worker(own.cancel)
    try:
        while (token := await asyncio.wrap_future(worker.submit(partial(next, tokens, None)))) is not None:
            yield token
    finally:
        own.cancel()
        closed = worker.submit(tokens.close)
        closed.add_done_callback(lambda _: worker.release())
        # A second cancellation does not reach the thread, which closes the stream all the same.
        await asyncio.shield(asyncio.wrap_future(closed))


class _Either(Cancellation):
    """Cancelled as soon as one of two is."""

    def __init__(self, own: Cancellation, given: Cancellation) -> None:
        super().__init__()
        self._both = own, given

    def is_cancelled(self) -> bool:
        """Whether one of them is."""
        return any(each.is_cancelled() for each in self._both)

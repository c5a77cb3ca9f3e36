"""Ctrl-C while something is taken back: the first one is why, the next one waits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Undone:
    """A block whose changes ``undo`` takes back when it raises; a Ctrl-C that comes meanwhile is told afterwards.

    So no second interrupt leaves half of them. One that comes while the block is entered or left is told afterwards,
    too. In the main thread and where Ctrl-C has a handler of Python's; other threads are not interrupted. An interrupt
    that comes while another one is taken back is not told again.
    """

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo = undo
        self._undoing = False
        self._late: tuple[int, FrameType | None] | None = None
        self._previous: Any = None
        self._own: Any = None

    def __enter__(self) -> Undone:
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(handler):
            self._previous = handler
            self._own = self._handle  # a method anew at each access
            signal.signal(signal.SIGINT, self._own)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Raised within ``__enter__`` or ``__exit__`` it would leave this handler set, and no later one would be told.
        if self._undoing or _enters_or_leaves(frame):
            self._late = number, frame
            return
        try:
            self._previous(number, frame)
        except BaseException:
            self._undoing = True  # before anything of the block's end runs
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._undoing = True
                self._undo()
        finally:
            # Unless the block has set another one.
            if self._previous is not None and signal.getsignal(signal.SIGINT) is self._own:
                signal.signal(signal.SIGINT, self._previous)
            self._own = None  # it refers to this object, which holds what could be taken back
        if self._late is not None and not isinstance(error, KeyboardInterrupt):
            self._previous(*self._late)


def _enters_or_leaves(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in (Undone.__enter__.__code__, Undone.__exit__.__code__):
            return True
        frame = frame.f_back
    return False

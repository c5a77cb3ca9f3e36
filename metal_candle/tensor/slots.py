"""A bound on how many of something there are at once, for threads and for tasks of asyncio alike."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future

from ..error import Error


class Slots:
    """``count`` slots. Who finds none free waits, in the order of coming."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._tickets: deque[Future[None]] = deque()
        self._lock = threading.RLock()

    def take(self) -> None:
        """Take a slot, blocking until there is one. Raises ``Error`` if ``close`` comes first."""
        ticket = self._ticket()
        try:
            ticket.result()
        except BaseException:  # an interrupt or a cancellation too: the slot must come back; raised again
            self._return(ticket)
            raise

    async def take_async(self) -> None:
        """Take a slot, suspending the task until there is one. Raises as ``take``."""
        ticket = self._ticket()
        try:
            if ticket.done():
                ticket.result()
            else:
                await asyncio.wrap_future(ticket)
        except BaseException:  # an interrupt or a cancellation too: the slot must come back; raised again
            self._return(ticket)
            raise

    def take_beyond(self) -> None:
        """Take a slot though none may be free, for who would wait for itself."""
        with self._lock:
            self._free -= 1

    def give(self) -> None:
        """Give a slot back, to who waits longest."""
        granted = []
        with self._lock:
            self._free += 1
            while self._tickets and self._free > 0:
                ticket = self._tickets.popleft()
                if ticket.set_running_or_notify_cancel():
                    self._free -= 1
                    granted.append(ticket)
        for ticket in granted:
            ticket.set_result(None)

    def close(self) -> None:
        """Let those who wait for a slot fail."""
        with self._lock:
            tickets = [ticket for ticket in self._tickets if ticket.set_running_or_notify_cancel()]
            self._tickets.clear()
            self._free -= len(tickets)  # each gives its slot back when it fails
        for ticket in tickets:
            ticket.set_exception(Error("submit: the executor was shut down while this waited for a slot"))

    def _ticket(self) -> Future[None]:
        ticket: Future[None] = Future()
        with self._lock:
            if self._free > 0:
                self._free -= 1
                ticket.set_result(None)
            else:
                self._tickets.append(ticket)
        return ticket

    def _return(self, ticket: Future[None]) -> None:
        """Who waited with this ticket does no more: off with it, or with the slot it brings."""
        if not ticket.cancel():
            self.give()

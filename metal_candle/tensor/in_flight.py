"""What is being evaluated: graphs that share nodes without a value go one after the other, others at the same time."""

from __future__ import annotations

import contextvars
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..device import Device
from ..graph.evaluate import evaluate
from ..graph.node import GraphNode, NodeNumber, unevaluated_order
from ..graph.structure import lock as walking
from . import workers
from .evaluation import Evaluation

# The last evaluation in flight that computes a node, by the node's id.
_owner: dict[NodeNumber, _Work] = {}


class _Work:
    """One evaluation in flight. It waits for those that were there before and share nodes with it."""

    def __init__(
        self, evaluation: Evaluation[Any], nodes: Sequence[GraphNode], device: Device, value: Callable[[], Any]
    ) -> None:
        self.evaluation, self.device = evaluation, device
        self._nodes, self._value = nodes, value
        # Switches overridden by the caller hold here as well.
        self._context = contextvars.copy_context()
        self._computes: list[NodeNumber] = []
        self._next: list[_Work] = []
        self._waits_for = 0
        self._left = False

    def enter(self) -> bool:
        """Take a place among what is in flight; whether nothing is before it."""
        with walking:
            order = unevaluated_order(self._nodes)
            # Numbers: an evaluation keeps the value of a node on the way that anybody refers to.
            ids = [node.id for node in order if node.value is None]
            del order
        with workers.lock:
            if self._left:  # cancelled meanwhile
                return False
            before = {owner for node in ids if (owner := _owner.get(node)) is not None}
            for node in ids:
                _owner[node] = self
            for other in before:
                other._next.append(self)
            self._computes = ids
            self._waits_for = len(before)
            return not before

    def leave(self) -> list[_Work]:
        """Give the place up; what may run now, because it waited only for this."""
        ready: list[_Work] = []
        leaving = [self]
        with workers.lock:
            while leaving:
                work = leaving.pop()
                if work._left:
                    continue
                work._left = True
                for node in work._computes:
                    if _owner.get(node) is work:
                        del _owner[node]
                for other in work._next:
                    other._waits_for -= 1
                    if not other._waits_for:
                        (leaving if other.evaluation.cancelled() else ready).append(other)
                work._computes, work._next, work._nodes = [], [], ()
        return ready

    def withdraw(self) -> None:
        """Give the place up before its turn. Behind another it stays: what comes after it has to wait for that."""
        with workers.lock:
            self._nodes, self._value = (), _nothing
            ready = [] if self._waits_for else self.leave()
        for work in ready:
            work.start()

    def start(self) -> None:
        """Compute in a worker."""
        if not workers.start(self.device, self.run):
            self.run()

    def run(self) -> None:
        """Compute here, and at the interpreter's end, when workers take nothing more, what waited for this too."""
        here = deque([self])
        del self
        while here:
            here += here.popleft()._run()

    def _run(self) -> list[_Work]:
        evaluation, error, value = self.evaluation, None, None
        try:
            runs = evaluation._start()
            if runs:
                try:
                    self._context.run(evaluate, self._nodes)
                    value = self._value()
                except BaseException as raised:  # an interrupt too goes to the one who waits
                    error = raised
            # First what waits for the nodes, then who waits for the value and may do anything in a callback.
            late = [work for work in self.leave() if not workers.start(work.device, work.run)]
            if error is not None:
                evaluation.set_exception(error)
            elif runs:
                evaluation.set_result(value)
            return late
        finally:
            # The error refers to this frame, and the evaluation to the error.
            del self, evaluation, error, value


def _nothing() -> None:
    """What a withdrawn evaluation would give; it is not asked."""


def begin(evaluation: Evaluation[Any], nodes: Sequence[GraphNode], device: Device, value: Callable[[], Any]) -> None:
    """Compute ``nodes`` in a worker of ``device``; then ``evaluation`` gives what ``value()`` gives."""
    work = _Work(evaluation, nodes, device, value)
    evaluation._withdraw = work.withdraw
    if work.enter():
        work.start()


def _after_fork() -> None:
    """Nothing is in flight in a forked process: the threads stayed behind."""
    _owner.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

"""A warning where the graph grows from step to step, because something keeps what was recorded in every step.

Two looks, neither of which costs a step anything to speak of. ``backward()`` remembers the last losses weakly: where a
loop has let go of none of them, their graphs add up. And now and then, so seldom that it takes a two-hundredth of the
time, all nodes that still have their inputs are counted: where there are more every time, something that nobody
evaluates is carried along, a moving average of variables say. Only when growth was noticed are the callers' variables
looked through for the one that holds it.
"""

from __future__ import annotations

import dis
import gc
import sys
import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from types import FrameType, ModuleType
from typing import Any

from ..graph.node import GraphNode, topological_order
from .base import TensorBase

STEPS = 20
"""Of so many backward passes in a row every loss must be kept before somebody is told."""
COUNTS = 5
"""So many counts of all nodes, each larger than the one before, and the last by ``LEAST`` than the first."""
LEAST = 500
SHARE = 200
"""The time between two counts is so many times that of one, and at least ``PAUSE`` seconds."""
PAUSE = 0.5
PARTS = 200
"""So many of a container's last parts are looked at: a data set may be one of the variables."""
_PACKAGE = __name__.partition(".")[0]


class GraphGrowthWarning(UserWarning):
    """The graph is larger after every step; the text names the variable that holds it, its line, and the cure."""


class Growth:
    """What is remembered between steps."""

    def __init__(self) -> None:
        self._losses: deque[weakref.ref[GraphNode]] = deque(maxlen=STEPS)
        self._counts: deque[int] = deque(maxlen=COUNTS)
        self._next = 0.0
        self._told: set[tuple[str, int]] = set()

    def after_backward(self, loss: GraphNode) -> None:
        """Look whether the losses of the last steps are all kept, with what they were computed from."""
        losses = self._losses
        oldest = losses[0]() if len(losses) == STEPS else None
        if oldest is not None and oldest is not loss and oldest.inputs:
            kept = [node for node in (each() for each in losses) if node is not None and node.inputs]
            if len(set(kept)) == STEPS:
                losses.clear()
                self._tell(f"every loss of the last {STEPS} steps is kept with its graph")
        losses.append(weakref.ref(loss))
        self.now_and_then()

    def now_and_then(self) -> None:
        """Count the nodes that keep their inputs, if it is time."""
        start = time.monotonic()
        if start < self._next:
            return
        count = sum(1 for each in gc.get_objects() if type(each) is GraphNode and each.inputs)
        now = time.monotonic()
        self._next = now + max(PAUSE, SHARE * (now - start))
        counts = self._counts
        if counts and count <= counts[-1]:
            counts.clear()
        counts.append(count)
        if len(counts) == COUNTS and count - counts[0] >= LEAST:
            grown = count - counts[0]
            counts.clear()
            self._tell(f"{grown} more recorded operations are kept than {COUNTS - 1} looks ago", 3 * LEAST // 4)

    def _tell(self, what: str, least: int = STEPS) -> None:
        frame: FrameType | None = sys._getframe(1)
        level = 2
        while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE:
            frame, level = frame.f_back, level + 1
        if frame is None:
            return
        found = max(_holders(frame), key=lambda holder: holder[0], default=None)
        if found is None or found[0] < least:
            # Nothing that the callers hold by name has grown so far: it may be meant.
            return
        size, name, place, line = found
        if (place, line) in self._told:
            return
        self._told.add((place, line))
        warnings.warn(
            f"the graph grows: {what}; `{name}` at {place}:{line} holds {size} operations, and with them the memory of "
            "all steps. Keep numbers, float(loss), or values without it: .detach() of an eager tensor, "
            ".detach().eval() of a lazy one",
            GraphGrowthWarning,
            stacklevel=level,
        )


def _holders(frame: FrameType | None) -> Iterator[tuple[int, str, str, int]]:
    """What variables of a frame and its callers hold: how many operations, name, file and line."""
    seen: set[int] = set()
    for _ in range(8):
        if frame is None:
            return
        for name, value in list(frame.f_locals.items()):
            yield from _holder(frame, name, name, value, seen)
            if not isinstance(value, (type, ModuleType)):
                for attribute, held in list(getattr(value, "__dict__", {}).items()):
                    yield from _holder(frame, f"{name}.{attribute}", attribute, held, seen)
        frame = frame.f_back


def _holder(frame: FrameType, shown: str, name: str, value: Any, seen: set[int]) -> Iterator[tuple[int, str, str, int]]:
    if id(value) in seen:
        return
    held = list(_nodes_in(value, 3))
    line = _line_of(frame, name, not isinstance(value, TensorBase)) if held else 0
    if not line:
        return
    seen.add(id(value))
    nodes = topological_order(held)
    size = sum(bool(node.inputs) for node in nodes)
    yield size, shown, frame.f_code.co_filename, line


def _nodes_in(value: Any, depth: int) -> Iterator[GraphNode]:
    """The nodes of a tensor or of what ``backward()`` gave, also in so many containers around each other."""
    if isinstance(value, TensorBase):
        yield value._node
    elif isinstance(value, (list, tuple, deque, dict)):
        parts = list(value.values() if isinstance(value, dict) else value) if depth else []
        for part in parts[-PARTS:]:
            yield from _nodes_in(part, depth - 1)
    elif isinstance(loss := getattr(value, "__dict__", {}).get("_loss"), GraphNode):
        yield loss


def _line_of(frame: FrameType, name: str, changed: bool) -> int:
    """Where a function gives a variable its value, at last; or where it uses one that is changed in place; else 0."""
    line, found = frame.f_code.co_firstlineno, 0
    for step in dis.get_instructions(frame.f_code):
        if sys.version_info >= (3, 13):
            line = step.line_number or line
        else:
            line = step.starts_line or line
        names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
        if name in names and (step.opname.startswith("STORE") or (changed and step.opname.startswith("LOAD"))):
            found = line
    return found


growth = Growth()

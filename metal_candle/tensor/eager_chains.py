"""A warning for chains of eager operations in hot loops, for those who ask for it.

An eager operation is evaluated before the next one starts, so that nothing can be fused and each waits for MLX's
worker. For one call that does not matter (metal-candle's guide: lazy pays for chains of three and more); in a loop it
does. Nothing here costs anything unless a watch is on.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections import Counter
from contextlib import ContextDecorator
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

from ..error import ArgumentValueError
from ..error.text import described
from ..graph.node import GraphNode
from . import eager

SHORTEST = 3
"""The chain that is worth a lazy graph: metal-candle's guide says three operations."""

OFTEN = 100
"""How many times the same line ends such a chain before it counts as a hot loop."""

_PACKAGE = __name__.partition(".")[0]


class EagerPerformanceWarning(UserWarning):
    """A chain of eager operations runs again and again, each evaluated on its own.

    The cure: lift the first tensor with ``LazyTensor.from_tensor`` and call ``eval()`` at the end of the chain, or put
    ``metal_candle.compile`` on the function. A loop that is meant to be eager is silenced as any warning is, by
    ``warnings.filterwarnings``.
    """


class warn_eager_chains(ContextDecorator):
    """Watch eager operations inside the block or the decorated function, in all threads.

    The line that makes a chain ``length`` operations long, or longer, for the ``calls``-th time is warned about by an
    ``EagerPerformanceWarning`` that names the operations; once for each function, whose other lines are then known
    too. ``METAL_CANDLE_WARN_EAGER=1`` watches from the start. Raises ``ArgumentValueError`` for ``calls`` below 1 and
    ``length`` below 2.
    """

    def __init__(self, calls: int = OFTEN, length: int = SHORTEST) -> None:
        for name, value, least in (("calls", calls, 1), ("length", length, 2)):
            if type(value) is not int or value < least:
                raise ArgumentValueError(
                    f"warn_eager_chains: got {name} {described(value)}; takes an integer from {least}"
                )
        self._watch = _Watch(calls, length)

    def __enter__(self) -> None:
        _watches.append(self._watch)
        eager.observe(_saw)

    def __exit__(self, *error: object) -> None:
        _watches.remove(self._watch)
        if not _watches:
            eager.observe(None)


class _Watch:
    """Which chains are on their way, and how often each line ended one."""

    def __init__(self, calls: int, length: int) -> None:
        self._calls, self._length = calls, length
        # The operations that led to a result, the oldest first; gone with the result.
        self._chains: WeakKeyDictionary[GraphNode, tuple[str, ...]] = WeakKeyDictionary()
        self._ends: Counter[tuple[CodeType, int]] = Counter()
        self._told: set[CodeType] = set()
        self._lock = threading.Lock()

    def saw(self, node: GraphNode) -> None:
        """Note that an eager operation is about to be evaluated."""
        with self._lock:
            longest: tuple[str, ...] = max(
                (self._chains.get(source, ()) for source in node.inputs), key=len, default=()
            )
            chain = (*longest[-9:], node.operation.name())
            self._chains[node] = chain
            if len(chain) < self._length:
                return
            code, line, depth = _caller()
            if code in self._told:
                return
            self._ends[code, line] += 1
            due = self._ends[code, line] == self._calls
            if due:
                self._told.add(code)
        if due:
            warnings.warn(
                f"line {line} of {code.co_name} has made a chain of {len(chain)} eager operations {self._calls} times "
                f"({' -> '.join(chain)}), each evaluated on its own; LazyTensor.from_tensor(x) before it and .eval() "
                "after it evaluate them together, metal_candle.compile replays the whole function",
                EagerPerformanceWarning,
                stacklevel=depth,
            )


_watches: list[_Watch] = []


def _saw(node: GraphNode) -> None:
    for watch in _watches:
        watch.saw(node)


def _caller() -> tuple[CodeType, int, int]:
    """Code and line of the innermost frame outside the package, and its ``stacklevel`` as ``_Watch.saw`` sees it."""
    frame: Any = sys._getframe(1)
    depth = 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame, depth = frame.f_back, depth + 1
    return frame.f_code, frame.f_lineno, depth

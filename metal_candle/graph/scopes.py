"""Where a node was recorded: the path of the module whose ``forward`` was running, "Decoder.layers.0.mlp".

Each thread has its own path, ``_state.scope``, which every new node copies, and the module at work, beside it.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..error import Error
from .node import _state

F = TypeVar("F", bound=Callable[..., Any])

_MOST = 4096
"""A longer list holds data, not modules; it is not searched."""


_absent = object()
# By the ids of holder and held: the name, and references that remove the entry before an id can be used again.
_names: dict[tuple[int, int], tuple[str, Any, Any]] = {}


@contextmanager
def scope(name: str) -> Iterator[None]:
    """What is recorded inside the block belongs to ``name``, below the scope around it; also a decorator.

    Modules do this by themselves. Dots in a name make levels. Raises ``Error`` unless it is a string with no
    empty level.
    """
    if not isinstance(name, str) or not all(name.split(".")):
        raise Error(f"scope: got {name!r}; takes a name such as 'attention' or 'layers.0'")
    before = _state.scope
    _state.scope = f"{before}.{name}" if before else name
    try:
        yield
    finally:
        _state.scope = before


def scoped(method: F) -> F:
    """The method, run in the scope of the object it is called on.

    That is named as the object that called it holds it: an attribute, the index in a list or the key in a dict; and
    by its class where no other is at work, or where the other does not hold it. Calling another method of the same
    object, ``super().forward`` say, stays in the scope.
    """

    @functools.wraps(method)
    def inside(self: Any, first: Any = _absent, /, *others: Any, **named: Any) -> Any:
        here = _state.__dict__  # this thread's; each access to a thread's attribute costs as much as all below
        outer = here.get("module")
        if outer is self:
            return method(self, *(() if first is _absent else (first,)), *others, **named)
        before = here.get("scope", "")
        entry = _names.get((id(outer), id(self)))
        name = _named(outer, self) if entry is None else entry[0]
        here["scope"] = f"{before}.{name}" if before else name
        here["module"] = self
        try:
            if others or named or first is _absent:
                return method(self, *(() if first is _absent else (first,)), *others, **named)
            return method(self, first)  # nearly all calls; passing one argument on as itself is three times faster
        finally:
            here["scope"] = before
            here["module"] = outer

    inside.is_scoped = True  # type: ignore[attr-defined]
    return inside  # type: ignore[return-value]


def _named(holder: object | None, held: object) -> str:
    """The last part of the path of ``held``, found and remembered for as long as both live."""
    name = type(held).__name__
    if holder is None:
        return name
    name = _find(holder, held) or name
    key = id(holder), id(held)

    def forget(_: Any) -> None:
        _names.pop(key, None)

    _names[key] = name, weakref.ref(holder, forget), weakref.ref(held, forget)
    return name


def _find(holder: object, held: object) -> str | None:
    """Under which name ``holder`` has ``held``, the nearest first: "mlp", "layers.0", "block.inner"."""
    queue: deque[tuple[str, object]] = deque([("", holder)])
    seen = {id(holder)}
    while queue:
        path, place = queue.popleft()
        for name, value in _contents(place):
            where = f"{path}.{name}" if path else name
            if value is held:
                return where
            if id(value) not in seen and (isinstance(value, (list, tuple, dict)) or hasattr(type(value), "forward")):
                seen.add(id(value))
                queue.append((where, value))
    return None


def _contents(place: object) -> list[tuple[str, object]]:
    if isinstance(place, (list, tuple)):
        return [(str(i), value) for i, value in enumerate(place)] if len(place) <= _MOST else []
    if isinstance(place, dict):
        return [(str(key), value) for key, value in list(place.items())] if len(place) <= _MOST else []
    # ``_q_norm`` is private to Python code; in a path it is ``q_norm``, as in a checkpoint.
    return [(key.lstrip("_") or key, value) for key, value in list(getattr(place, "__dict__", {}).items())]

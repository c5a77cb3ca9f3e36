"""Where a node was recorded: the path of the module whose ``forward`` was running, "Decoder.layers.0.mlp".

Each thread has its own path, ``_state.scope``, which every new node copies, and beside it its ``_Place``: places are
a tree that remembers the path of every way in which a module was called, for as long as the module lives.
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
_NAMES = 256
"""How many names given by ``scope`` are remembered at one place: a name may have the number of a step in it."""
_absent = object()


class _Place:
    """A path, the module at work there, and what was called from there: by id, or by the name given to ``scope``."""

    __slots__ = ("children", "key", "module", "path")

    def __init__(self, path: str, key: int, module: weakref.ref[Any] | None) -> None:
        self.path, self.key, self.module = path, key, module
        self.children: dict[int | str, _Place] = {}


_outside = _Place("", 0, None)


@contextmanager
def scope(name: str) -> Iterator[None]:
    """What is recorded inside the block belongs to ``name``, below the scope around it; also a decorator.

    Modules do this by themselves. Dots in a name make levels. Raises ``Error`` unless it is a string with no
    empty level.
    """
    if not isinstance(name, str) or not all(name.split(".")):
        raise Error(f"scope: got {name!r}; takes a name such as 'attention' or 'layers.0'")
    here = _state.__dict__
    outer: _Place = here.get("place", _outside)
    place = outer.children.get(name)
    if place is None:
        place = _Place(_joined(outer.path, name), outer.key, outer.module)
        if len(outer.children) < _NAMES:
            outer.children[name] = place
    here["place"], here["scope"] = place, place.path
    try:
        yield
    finally:
        here["place"], here["scope"] = outer, outer.path


def scoped(method: F) -> F:
    """The method, run in the scope of the object it is called on.

    That is named as the object that called it holds it: an attribute, the index in a list or the key in a dict; and
    by its class where no other is at work, or where the other does not hold it. Calling another method of the same
    object, ``super().forward`` say, stays in the scope.
    """

    @functools.wraps(method)
    def inside(self: Any, first: Any = _absent, /, *others: Any, **named: Any) -> Any:
        here = _state.__dict__  # this thread's: looked up once, it costs as much as all that follows
        outer = here.get("place", _outside)
        me = id(self)
        if outer.key == me:
            return method(self, *(() if first is _absent else (first,)), *others, **named)
        place = outer.children.get(me) or _entered(outer, self)
        here["place"] = place
        here["scope"] = place.path
        try:
            if others or named or first is _absent:
                return method(self, *(() if first is _absent else (first,)), *others, **named)
            return method(self, first)  # nearly all calls; passing one argument on as itself is three times faster
        finally:
            here["place"] = outer
            here["scope"] = outer.path

    inside.is_scoped = True  # type: ignore[attr-defined]
    return inside  # type: ignore[return-value]


def _entered(outer: _Place, module: object) -> _Place:
    """The place of a module that is called from ``outer`` for the first time."""
    children, key = outer.children, id(module)
    holder = outer.module() if outer.module is not None else None
    name = (holder is not None and _find(holder, module)) or type(module).__name__
    # Before the id can be used again the entry is gone.
    place = _Place(_joined(outer.path, name), key, weakref.ref(module, lambda _: children.pop(key, None)))
    children[key] = place
    return place


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _find(holder: object, held: object) -> str | None:
    """Under which name ``holder`` has ``held``, the nearest first: "mlp", "layers.0", "block.inner"."""
    queue: deque[tuple[str, object]] = deque([("", holder)])
    seen = {id(holder)}
    while queue:
        path, place = queue.popleft()
        for name, value in contents(place):
            where = f"{path}.{name}" if path else name
            if value is held:
                return where
            if id(value) not in seen and (isinstance(value, (list, tuple, dict)) or hasattr(type(value), "forward")):
                seen.add(id(value))
                queue.append((where, value))
    return None


def contents(place: object) -> list[tuple[str, object]]:
    """What an object, list or dict holds directly, by name."""
    if isinstance(place, (list, tuple)):
        return [(str(i), value) for i, value in enumerate(place)] if len(place) <= _MOST else []
    if isinstance(place, dict):
        return [(str(key), value) for key, value in list(place.items())] if len(place) <= _MOST else []
    # ``_q_norm`` is private to Python code; in a path it is ``q_norm``, as in a checkpoint.
    return [(key.lstrip("_") or key, value) for key, value in list(getattr(place, "__dict__", {}).items())]

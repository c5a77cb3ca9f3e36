"""A module in words, as ``print`` shows it: its tensors' shapes, its numbers, and the modules in it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from inspect import signature
from typing import Any

from ..graph.scopes import contents
from ..tensor.base import TensorBase

INDENT = "  "


def picture(module: Any, kind: type[Any], seen: tuple[int, ...] = ()) -> str:
    """``Linear(weight [10, 64] f32, bias [10] f32)``; modules of the class ``kind`` one a line, equal ones together."""
    name = type(module).__name__
    if id(module) in seen:
        return f"{name}(…)"
    seen = (*seen, id(module))
    own: list[str] = []
    inner: list[tuple[str, str]] = []
    # What is neither a field, nor has a getter, nor was given to the constructor is nobody else's.
    given = signature(type(module).__init__).parameters
    for key, value in contents(module):
        if isinstance(value, (kind, list, tuple, dict)):
            inner += _held(key, value, kind, seen, own)
        elif isinstance(value, TensorBase) or hasattr(module, key) or key in given:
            own += _plain(key, value)
    if not inner:
        return f"{name}({', '.join(own)})"
    lines = [text.replace("\n", f"\n{INDENT}") for text in [*own, *_together(inner)]]
    return "\n".join([f"{name}(", *(f"{INDENT}{line}" for line in lines), ")"])


def _held(path: str, value: Any, kind: type[Any], seen: tuple[int, ...], own: list[str]) -> list[tuple[str, str]]:
    """The modules at and below ``value``, by path, in words; tensors beside them go to ``own``."""
    if isinstance(value, kind):
        return [(path, _shown(value, kind, seen))]
    found = []
    for key, each in contents(value):
        if isinstance(each, (kind, list, tuple, dict)):
            found += _held(f"{path}.{key}", each, kind, seen, own)
        elif isinstance(each, TensorBase):
            own += _plain(f"{path}.{key}", each)
    return found


def _shown(module: Any, kind: type[Any], seen: tuple[int, ...]) -> str:
    """The module's own words, if its class has any."""
    return picture(module, kind, seen) if type(module).__repr__ is kind.__repr__ else repr(module)


def _plain(key: str, value: Any) -> list[str]:
    if isinstance(value, TensorBase):
        return [f"{key} {list(value.shape)} {value.dtype}"]
    if isinstance(value, (bool, int, float, str)):
        return [f"{key}={value!r}"]
    return _differing(value) if is_dataclass(value) else []


def _differing(config: Any) -> list[str]:
    """The fields of a config that are not as they are by default."""
    found = {each.name: (getattr(config, each.name), each.default) for each in fields(config)}
    return [f"{name}={value}" for name, (value, default) in found.items() if value != default]


def _together(modules: list[tuple[str, str]]) -> list[str]:
    """Lines of modules; those in a row of a list that look the same share one: ``0 to 29: Block(…)``."""
    lines: list[str] = []
    start = 0
    for place, (path, text) in enumerate(modules):
        last = (
            place + 1 == len(modules)
            or modules[place + 1][1] != text
            or _parent(modules[place + 1][0]) != _parent(path)
        )
        if last:
            first = modules[start][0]
            span = path if start == place else f"{first} to {path.rpartition('.')[2]}"
            lines.append(f"{span}: {text}")
            start = place + 1
    return lines


def _parent(path: str) -> str | None:
    """The list a module stands in; attributes have none and stay apart."""
    parent, dot, key = path.rpartition(".")
    return parent if dot and key.isdigit() else path

"""Tensors in nested lists, tuples, dicts and dataclasses: what ``compile`` takes and gives."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from ..device import Device
from ..error import Error
from ..graph.node import GraphNode, Trace, is_own_leaf
from .base import TensorBase
from .eager import CellTensor, Tensor
from .grad_store import GradStore


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a tensor stands in a structure of arguments or results, and of which class it is."""

    index: int
    kind: type[TensorBase]


@dataclasses.dataclass(frozen=True)
class Record:
    """A dataclass in such a structure, to be made anew with its tensors."""

    kind: type
    attributes: dict[str, Any]


_CPU = Device.Cpu
_BY_VALUE = frozenset((int, bool, str, bytes, type(None)))


def note(value: Any, key: list[Any], nodes: list[GraphNode]) -> None:
    """Append to ``key`` what tells ``value`` from others of another structure, and to ``nodes`` those of its tensors.

    A tensor counts by shape, dtype and device; a variable, which is read anew at each call, by itself.
    """
    kind = type(value)
    key.append(kind)
    # What calls pass most often first: this runs at each of them.
    if kind is Tensor:
        node = value._node
        if node.variable is None:
            nodes.append(node)
            key.append(node.meta)
            if node.device is not _CPU:
                key.append(node.device)
        else:
            _note_tensor(node, key, nodes)
    elif kind is tuple or kind is list:
        key.append(len(value))
        for item in value:
            note(item, key, nodes)
    elif kind in _BY_VALUE:
        key.append(value)
    elif kind is dict:
        _note_items(value, key, nodes)
    elif kind is float:
        key.append(repr(value))  # zeros of both signs are equal, and a NaN is not equal to itself
    else:
        _note_other(value, key, nodes)


def _note_tensor(node: GraphNode, key: list[Any], nodes: list[GraphNode]) -> None:
    if is_own_leaf(node):
        key.append(node.variable)
        return
    nodes.append(node)
    key.append(node.meta)
    if node.device is not _CPU:
        key.append(node.device)


def _note_items(value: dict[Any, Any], key: list[Any], nodes: list[GraphNode]) -> None:
    key.append(len(value))
    for name, item in value.items():
        if type(name) is str:
            key.append(name)
        else:
            note(name, key, nodes)
        note(item, key, nodes)


def _note_other(value: Any, key: list[Any], nodes: list[GraphNode]) -> None:
    if isinstance(value, CellTensor):
        key.append(value._variable)
    elif isinstance(value, TensorBase):
        if isinstance(value, Tensor):
            key[-1] = Tensor  # a view counts as the tensor it shows
        _note_tensor(value._node, key, nodes)
    elif isinstance(value, (list, tuple)):
        key.append(len(value))
        for item in value:
            note(item, key, nodes)
    elif isinstance(value, dict):
        key.append(value.default_factory if isinstance(value, defaultdict) else None)
        _note_items(value, key, nodes)
    elif isinstance(value, float):
        key.append(float.__repr__(value))
    elif isinstance(value, (complex, np.generic)):
        key.append(repr(value))
    elif isinstance(value, frozenset):
        key.append(frozenset([_noted(item, nodes) for item in value]))
    elif _is_record(value):
        note(_attributes(value), key, nodes)
    else:
        key.append(value)


def _noted(value: Any, nodes: list[GraphNode]) -> Hashable:
    key: list[Any] = []
    note(value, key, nodes)
    return tuple(key)


def skeleton(value: Any, tensors: list[TensorBase], path: str, trace: Trace | None = None) -> Any:
    """``value`` with its tensors replaced by slots; they are appended to ``tensors``. A variable stays what it is.

    ``trace`` is the one that ``value`` is the result of. Raises ``Error`` that names ``path`` for what cannot be part
    of a plan.
    """
    kind = type(value)
    if isinstance(value, TensorBase):
        if isinstance(value, CellTensor):
            if trace is not None and value._variable in trace.made:
                raise Error(
                    f"compile: {path} is a variable that the traced function made; takes copy() of it, or a Var from "
                    "outside, which every call shares"
                )
            return value
        if trace is None and is_own_leaf(value._node):
            return value
        tensors.append(value)
        return Slot(len(tensors) - 1, Tensor if isinstance(value, Tensor) else kind)
    count = len(tensors)
    if isinstance(value, (list, tuple)):
        items = [skeleton(item, tensors, f"{path}[{i}]", trace) for i, item in enumerate(value)]
        if isinstance(value, tuple) and kind is not tuple and not hasattr(kind, "_fields"):
            if len(tensors) > count:
                raise _refused(path, value, "tensors in a list, tuple, namedtuple, dict or dataclass")
            return value
        return _sequence(value, items)
    if isinstance(value, dict):
        for name in value:
            skeleton(name, tensors, f"the key {name!r} of {path}", trace)
        if len(tensors) > count:
            raise Error(f"compile: {path} has a tensor as a key; takes tensors as a dict's values")
        if getattr(value, "__dict__", None):
            raise _refused(path, value, "a dict without attributes beside its items")
        return _dict(value, {name: skeleton(item, tensors, f"{path}[{name!r}]", trace) for name, item in value.items()})
    if isinstance(value, frozenset):
        for item in value:
            skeleton(item, tensors, f"an item of {path}", trace)
        if len(tensors) > count:
            raise Error(f"compile: {path} is a frozenset with a tensor in it; takes a list or tuple of tensors")
        return value
    if _is_record(value):
        items_by_name = _attributes(value).items()
        attributes = {name: skeleton(item, tensors, f"{path}.{name}", trace) for name, item in items_by_name}
        return value if len(tensors) == count and _is_hashable(value) else Record(kind, attributes)
    if isinstance(value, GradStore):
        raise _refused(path, value, "its gradients: grads[var]")
    if isinstance(value, (mx.array, np.ndarray)):
        raise _refused(path, value, "a tensor: Tensor(array)")
    if isinstance(value, (Iterator, AsyncIterator)):
        raise _refused(path, value, "a list of what it gives")
    if isinstance(value, Awaitable):
        raise _refused(path, value, "what it gives when awaited")
    if not _is_hashable(value):
        raise _refused(path, value, "tensors, hashable values and lists, tuples, dicts, dataclasses of them")
    return value


def _refused(path: str, value: Any, takes: str) -> Error:
    return Error(f"compile: {path} is of type {type(value).__name__}; takes {takes}")


def fill(structure: Any, make: Callable[[Slot], Any]) -> Any:
    """A skeleton with every slot replaced."""
    if isinstance(structure, Slot):
        return make(structure)
    if isinstance(structure, (list, tuple)):
        if isinstance(structure, tuple) and type(structure) is not tuple and not hasattr(structure, "_fields"):
            return structure
        return _sequence(structure, [fill(item, make) for item in structure])
    if isinstance(structure, dict):
        return _dict(structure, {name: fill(item, make) for name, item in structure.items()})
    if isinstance(structure, Record):
        made: Any = object.__new__(structure.kind)
        for name, item in structure.attributes.items():
            object.__setattr__(made, name, fill(item, make))  # a frozen dataclass has no other way
        return made
    return structure


def _sequence(like: Any, items: list[Any]) -> Any:
    """``items`` as a list or tuple of the class of ``like``."""
    kind = type(like)
    if kind is list:
        return items
    if kind is tuple:
        return tuple(items)
    if isinstance(like, tuple):
        return kind._make(items)
    made = copy.copy(like)
    made[:] = items
    return made


def _dict(like: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    """``items`` as a dict of the class of ``like``."""
    if type(like) is dict:
        return items
    made = copy.copy(like)
    for name, item in items.items():
        dict.__setitem__(made, name, item)
    return made


def _is_record(value: Any) -> bool:
    """Whether it is a dataclass that counts by its content: one that is compared by it, or that holds tensors."""
    kind = type(value)
    if not hasattr(kind, "__dataclass_fields__"):
        return False
    by_content: bool = kind.__hash__ is not object.__hash__  # type: ignore[comparison-overlap]
    return by_content or any(map(_holds_tensor, _attributes(value).values()))


def _holds_tensor(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
    return any(isinstance(part, TensorBase) for part in parts)


def _attributes(value: Any) -> dict[str, Any]:
    """A dataclass's fields, and what else it has been given."""
    found = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if hasattr(value, each.name)}
    return {**found, **getattr(value, "__dict__", {})}


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def labels(names: list[str], values: list[Any]) -> dict[str, str]:
    """Arguments in words, by where they stand: ``{"x": "[2, 3] f32", "parts['scale']": "2.0"}``."""
    return dict(part for name, value in zip(names, values) for part in _labels(name, value))


def _labels(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, TensorBase):
        node = value._node
        text = f"{list(value.shape)} {value.dtype}"
        lazy = "" if isinstance(value, Tensor) else "lazy "
        variable = value._variable if isinstance(value, CellTensor) else node.variable if is_own_leaf(node) else None
        yield path, lazy + (text if variable is None else f"the variable {variable.id} {text}")
    elif isinstance(value, (list, tuple)):
        yield f"len({path})", str(len(value))
        for i, item in enumerate(value):
            yield from _labels(f"{path}[{i}]", item)
    elif isinstance(value, dict):
        yield f"list({path})", str(list(value))
        for name, item in value.items():
            yield from _labels(f"{path}[{name!r}]", item)
    elif _is_record(value):
        yield f"type({path})", type(value).__name__
        for name, item in _attributes(value).items():
            yield from _labels(f"{path}.{name}", item)
    else:
        text = repr(value)
        yield path, text if len(text) <= 60 else text[:57] + "..."

"""Tensors in nested lists, tuples and dicts: what ``compile`` takes and gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ..device import Device
from ..error import Error
from ..graph.node import GraphNode
from .base import TensorBase
from .eager import CellTensor, Tensor
from .grad_store import GradStore


class Slot:
    """Where a tensor stands in a structure of arguments or results, and of which class it is."""

    __slots__ = ("index", "kind")

    def __init__(self, index: int, kind: type[TensorBase]) -> None:
        self.index, self.kind = index, kind


def note(value: Any, key: list[Any], nodes: list[GraphNode], by_rank: bool = False) -> None:
    """Append to ``key`` what tells ``value`` from others of another structure, and to ``nodes`` those of its tensors.

    A tensor counts by shape, or ``by_rank``, dtype and device; a variable, which is read anew at each call, by itself.
    """
    if isinstance(value, TensorBase):
        if isinstance(value, CellTensor):
            key.append(CellTensor)
            key.append(value._variable)
            return
        node = value._node
        nodes.append(node)
        key.append(Tensor if isinstance(value, Tensor) else type(value))
        key.append((len(node.meta[0]), node.meta[1]) if by_rank else node.meta)
        if node.device is not Device.Cpu:
            key.append(node.device)
    elif isinstance(value, (list, tuple)):
        key.append(type(value))
        key.append(len(value))
        for item in value:
            note(item, key, nodes, by_rank)
    elif isinstance(value, dict):
        key.append(dict)
        key.append(tuple(value))
        for item in value.values():
            note(item, key, nodes, by_rank)
    else:
        key.append(type(value))
        # The two zeros are equal, and not the same.
        key.append(str(value) if type(value) is float and value == 0 else value)


def skeleton(value: Any, tensors: list[TensorBase]) -> Any:
    """``value`` with its tensors replaced by slots; they are appended to ``tensors``. A variable stays what it is.

    Raises ``Error`` for what cannot be part of a plan.
    """
    if isinstance(value, GradStore):
        raise Error("compile: got a GradStore among the arguments or results; takes its gradients: grads[var]")
    if isinstance(value, CellTensor):
        return value
    if isinstance(value, TensorBase):
        tensors.append(value)
        return Slot(len(tensors) - 1, Tensor if isinstance(value, Tensor) else type(value))
    if isinstance(value, tuple):
        items = [skeleton(item, tensors) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [skeleton(item, tensors) for item in value]
    if isinstance(value, dict):
        return {name: skeleton(item, tensors) for name, item in value.items()}
    try:
        hash(value)
    except TypeError:
        raise Error(
            f"compile: got a {type(value).__name__} among the arguments or results; "
            "takes tensors, hashable values and lists, tuples, dicts of them"
        ) from None
    return value


def fill(structure: Any, make: Callable[[Slot], Any]) -> Any:
    """A skeleton with every slot replaced."""
    if isinstance(structure, Slot):
        return make(structure)
    if isinstance(structure, tuple):
        items = [fill(item, make) for item in structure]
        return type(structure)(*items) if hasattr(structure, "_fields") else tuple(items)
    if isinstance(structure, list):
        return [fill(item, make) for item in structure]
    if isinstance(structure, dict):
        return {name: fill(item, make) for name, item in structure.items()}
    return structure


def labels(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, str]:
    """The arguments in words, by where they stand: ``{"x": "[2, 3] f32", "parts['scale']": "2.0"}``."""
    try:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # no signature, as some built-in functions; or wrong arguments, which the call says
        given = {**{f"argument {i}": arg for i, arg in enumerate(args)}, **kwargs}
    return dict(part for name, value in given.items() for part in _labels(name, value))


def _labels(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, CellTensor):
        yield path, f"the variable {value._variable.id} {list(value.shape)} {value.dtype}"
    elif isinstance(value, TensorBase):
        yield path, f"{list(value.shape)} {value.dtype}"
    elif isinstance(value, (list, tuple)):
        yield f"len({path})", str(len(value))
        for i, item in enumerate(value):
            yield from _labels(f"{path}[{i}]", item)
    elif isinstance(value, dict):
        yield f"list({path})", str(list(value))
        for name, item in value.items():
            yield from _labels(f"{path}[{name!r}]", item)
    else:
        text = repr(value)
        yield path, text if len(text) <= 60 else text[:57] + "..."

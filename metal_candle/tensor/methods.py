"""Tensor methods and operators, made from the operations' records."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..error import Error
from ..graph import operations  # fills the registry
from ..graph.node import GraphNode, record
from ..graph.operation import REGISTRY, Operation
from ..graph.operations.binary import Binary
from .base import TensorBase

__all__ = ["TensorMethods", "method_table", "operations"]

Binder = Callable[..., Operation]


def _operand_nodes(tensor: TensorBase, name: str, operands: tuple[Any, ...], numbers: bool) -> list[GraphNode]:
    nodes = [tensor._node]
    for operand in operands:
        if isinstance(operand, TensorBase):
            nodes.append(tensor._operand(operand))
        elif numbers:
            nodes.append(tensor._number(operand))
        else:
            raise Error(f"{name}: got {type(operand).__name__} for an operand; takes a tensor")
    return nodes


def _method(key: str, name: str, bind: Binder, arity: int) -> Callable[..., Any]:
    """The method ``name``: tensor operands first, then what ``bind`` takes."""
    parameters = _parameters(key, bind, arity)
    names = [p.name for p in parameters]
    numbers = getattr(REGISTRY[key], "takes_number", False)
    broadcasting = REGISTRY[key].bind

    def method(self: TensorBase, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            given = dict(zip(names, args))
            if given.keys() & kwargs.keys() or not kwargs.keys() <= set(names):
                raise TypeError(f"{name}() takes {', '.join(names)}")
            given.update(kwargs)
            args = tuple(given[n] for n in names if n in given)
        if len(args) < arity - 1:
            raise TypeError(f"{name}() takes {', '.join(names) or 'no arguments'}")
        nodes = _operand_nodes(self, name, args[: arity - 1], numbers)
        number = numbers and not isinstance(args[0], TensorBase)
        operation = (broadcasting if number else bind)(*[node.meta for node in nodes], *args[arity - 1 :])
        return self._wrap(record(operation, tuple(nodes)))

    method.__name__ = name
    method.__qualname__ = f"TensorMethods.{name}"
    method.__doc__ = documentation(key)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = inspect.Signature([own, *parameters], return_annotation="Self")  # type: ignore[attr-defined]
    return method


def documentation(key: str) -> str:
    """The docstring of an operation's methods: its sentence and the Rust signature."""
    record_class = REGISTRY[key]
    text = inspect.cleandoc(record_class.__doc__ or "")
    return f"{text}\n\ncandle: ``{record_class.candle}``" if record_class.candle else text


def _parameters(key: str, bind: Binder, arity: int) -> list[inspect.Parameter]:
    """A method's parameters: the operands behind ``self`` as ``infer`` names them, then ``bind``'s own."""
    operands = list(inspect.signature(REGISTRY[key].infer).parameters.values())[2 : arity + 1]
    number = " | float" if getattr(REGISTRY[key], "takes_number", False) else ""
    plain = [
        inspect.Parameter(p.name, p.POSITIONAL_OR_KEYWORD, annotation=f"TensorBase{number}") for p in operands
    ]
    own = [p for p in inspect.signature(bind).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    return [*plain, *own[arity:]]


def method_table() -> dict[str, tuple[str, Callable[..., Any]]]:
    """Every derived method: its name, the record it comes from, the function."""
    table = {}
    for key, record_class in REGISTRY.items():
        for name, bind in record_class.surface().items():
            table[name] = (key, _method(key, name, bind, record_class.arity or 1))
    return table


def _operator(operation: Operation, reflected: bool) -> Callable[..., Any]:
    def operator(self: TensorBase, other: Any) -> Any:
        if isinstance(other, TensorBase):
            node = self._operand(other)
        elif isinstance(other, (bool, int, float)):
            node = self._number(other)
        else:
            return NotImplemented
        pair = (node, self._node) if reflected else (self._node, node)
        return self._wrap(record(operation, pair))

    return operator


class TensorMethods(TensorBase):
    """The methods that the records give, on top of what every tensor has."""

    __slots__ = ()


for _name, (_key, _function) in method_table().items():
    setattr(TensorMethods, _name, _function)
for _record in list(REGISTRY.values()):
    if issubclass(_record, Binary) and _record.operator:
        setattr(TensorMethods, f"__{_record.operator}__", _operator(_record(), reflected=False))
        if _record.operator in ("add", "sub", "mul", "truediv"):
            setattr(TensorMethods, f"__r{_record.operator}__", _operator(_record(), reflected=True))
# Python drops __hash__ from a class that defines __eq__; comparing gives a tensor, hashing is by identity.
TensorMethods.__hash__ = TensorBase.__hash__  # type: ignore[method-assign]

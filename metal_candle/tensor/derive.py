"""From records to tensor methods and operators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from ..error import ArgumentTypeError, ArgumentValueError, Error, ShapeMismatchBinaryOpError
from ..error.text import described
from ..graph import operations  # fills the registry
from ..graph.node import GraphNode, record
from ..graph.operation import REGISTRY, Operation
from ..graph.operations.affine import Affine, DivScalar
from ..graph.operations.binary import Binary, Div
from ..graph.operations.unary import Powf, Recip
from .arguments import check_of, makes_one, no_tensor, renamed
from .base import TensorBase

__all__ = ["documentation", "method_table", "operations", "operator_table", "parameters"]

Binder = Callable[..., Operation]


def method_table() -> dict[str, tuple[str, Callable[..., Any]]]:
    """Every derived method: its name, the record it comes from, the function."""
    table = {}
    for key, record_class in REGISTRY.items():
        for name, bind in record_class.surface().items():
            table[name] = (key, _method(key, name, bind))
    return table


def operator_table() -> dict[str, Callable[..., Any]]:
    """Python's operators, which broadcast and take numbers: ``__add__``, ``__radd__``, ``__pow__``, ``__lt__`` …"""
    table = {}
    for record_class in list(REGISTRY.values()):
        if not issubclass(record_class, Binary) or not record_class.operator:
            continue
        name = record_class.operator
        table[f"__{name}__"] = _operator(record_class(), _WITH_NUMBER.get(name), reflected=False)
        if name in ("add", "sub", "mul", "truediv", "pow"):
            table[f"__r{name}__"] = _operator(record_class(), _WITH_NUMBER.get(f"r{name}"), reflected=True)
    return table


def documentation(key: str) -> str:
    """The docstring of an operation's methods: its sentence and the Rust signature."""
    record_class = REGISTRY[key]
    text = inspect.cleandoc(record_class.__doc__ or "")
    return f"{text}\n\ncandle: ``{record_class.candle}``" if record_class.candle else text


def parameters(key: str, bind: Binder) -> list[inspect.Parameter]:
    """A method's parameters: the operands behind ``self`` as ``infer`` names them, then ``bind``'s own."""
    record_class = REGISTRY[key]
    arity = record_class.arity or 1
    operands = list(inspect.signature(record_class.infer).parameters.values())[2 : arity + 1]
    number = " | float" if _takes_number(record_class, bind) else ""
    plain = [inspect.Parameter(p.name, p.POSITIONAL_OR_KEYWORD, annotation=f"TensorBase{number}") for p in operands]
    own = [p for p in inspect.signature(bind).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    return [*plain, *own[arity:]]


def _takes_number(record_class: type[Operation], bind: Binder) -> bool:
    """Whether a number may stand for the right tensor: as in candle, not beside ``broadcast_<name>``."""
    return issubclass(record_class, Binary) and record_class.takes_number and bind == record_class.bind_strict


def _method(key: str, name: str, bind: Binder) -> Callable[..., Any]:
    """The method ``name``: tensor operands first, then what ``bind`` takes."""
    record_class = REGISTRY[key]
    declared = parameters(key, bind)
    if not declared and record_class.arity == 1 and record_class.bind.__func__ is Operation.bind.__func__:  # type: ignore[attr-defined]
        method = _without_parameters(record_class())
    elif issubclass(record_class, Binary):
        method = _of_two(record_class, name, bind)
    else:
        names = {key, *record_class.surface()}
        others = (names | {each.replace("_", "-") for each in names}) - {name}  # candle writes mean-keepdim in errors
        method = _of_any(name, bind, (record_class.arity or 1) - 1, declared, sorted(others, key=len, reverse=True))
    method.__name__ = name
    method.__doc__ = documentation(key)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = inspect.Signature([own, *declared], return_annotation="Self")  # type: ignore[attr-defined]
    return method


def _without_parameters(operation: Operation) -> Callable[..., Any]:
    def method(self: TensorBase) -> Any:
        node = self._node
        return self._wrap(record(operation, (node,), None, operation.infer(node.meta)))

    return method


def _of_two(record_class: type[Binary], name: str, bind: Binder) -> Callable[..., Any]:
    operation, strict, numbers = record_class(), bind == record_class.bind_strict, _takes_number(record_class, bind)

    def method(self: TensorBase, rhs: Any) -> Any:
        node = self._node
        if isinstance(rhs, TensorBase):
            other = self._operand(rhs)
            if strict and node.meta[0] != other.meta[0]:
                bind(node.meta, other.meta)
        elif not numbers:
            raise no_tensor(name, rhs)
        else:
            other = _number(self, name, rhs)
        try:
            meta = operation.infer(node.meta, other.meta)  # type: ignore[arg-type]
        except ShapeMismatchBinaryOpError as error:
            # The operation goes by its own name; who called broadcast_<name> is told of that.
            raise ShapeMismatchBinaryOpError(name, error.lhs, error.rhs, "shapes that broadcast") from None
        return self._wrap(record(operation, (node, other), None, meta))

    return method


def _number(tensor: TensorBase, name: str, value: Any) -> GraphNode:
    """A number beside a tensor, in its dtype."""
    if not isinstance(value, _NUMBERS):
        raise no_tensor(name, value, "a tensor or a number")
    try:
        float(value)
        return tensor._number(value)
    except OverflowError:
        raise _too_large(name, value) from None
    except Error as error:
        renamed(error, name, ("operand",))
        # It is a number: what does not fit is its value.
        raise ArgumentValueError(str(error)) from None


_NUMBERS = (int, float, np.integer, np.floating, np.bool_)


def _of_any(
    name: str, bind: Binder, operands: int, declared: list[inspect.Parameter], others: list[str]
) -> Callable[..., Any]:
    names = [p.name for p in declared]
    required = sum(p.default is p.empty for p in declared)
    # What an operation of dims and shapes gives depends on nothing but them and its operands' shapes and dtypes, so a
    # loop that records it again need not work it out again.
    known = all(p.annotation in _REMEMBERED for p in declared[operands:])
    checks = [check_of(name, p.name, p.annotation) for p in declared[operands:]]

    def work_out(metas: tuple[Any, ...], *args: Any) -> tuple[Operation | None, Any]:
        """The operation of a call, if it does anything, and the shape and dtype of its result."""
        try:
            operation = bind(*metas, *[check(arg) for check, arg in zip(checks, args)])
            meta = operation.infer(*metas)
            return None if operation.changes_nothing(metas[0]) else operation, meta
        except Error as error:
            renamed(error, name, others)
            raise

    # Typed: 1 and True are equal, but no dim is called True.
    bound = functools.lru_cache(_REMEMBER, typed=True)(work_out) if known else work_out

    def method(self: TensorBase, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            args = _positional(name, names, args, kwargs)
        if not required <= len(args) <= len(names):
            raise TypeError(f"{name}() takes {', '.join(names)}; got {len(args)} of {len(names)} arguments")
        node = self._node
        nodes: tuple[GraphNode, ...] = (node,)
        metas: tuple[Any, ...] = (node.meta,)
        for operand in args[:operands]:
            if not isinstance(operand, TensorBase):
                raise no_tensor(name, operand)
            other = self._operand(operand)
            nodes += (other,)
            metas += (other.meta,)
        try:
            operation, meta = bound(metas, *args[operands:])
        except TypeError as error:
            if isinstance(error, Error):
                raise
            operation, meta = work_out(metas, *args[operands:])  # dims in a list cannot be remembered
        return self if operation is None else self._wrap(record(operation, nodes, None, meta))

    return method


_REMEMBERED = ("DimLike", "DimsLike", "ShapeLike", "int", "bool")
_REMEMBER = 1024


def _positional(name: str, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    given = dict(zip(names, args))
    if len(args) > len(names) or given.keys() & kwargs.keys() or not kwargs.keys() <= set(names):
        raise TypeError(f"{name}() takes {', '.join(names)}; got {', '.join([*given, *kwargs])}")
    given.update(kwargs)
    # A gap, an argument left out before one that is given, leaves too few: the caller says so.
    return tuple(given[n] for n in names if n in given)


def _scaled(mul: float) -> Operation:
    # The two zeros are equal, and not the same.
    return _known(mul, 0.0) if mul else Affine(mul, 0.0)


def _shifted(add: float, mul: float = 1.0) -> Operation:
    return _known(mul, add) if add else Affine(mul, add)


_recip = Recip()
# A loop records the same numbers again and again.
_known = functools.lru_cache(1024)(Affine)


# What an operator with a number is on floats, as in candle: one operation of one tensor; None for no such operation.
_WITH_NUMBER: dict[str, Callable[[float], Operation | None]] = {
    "add": _shifted,
    "radd": _shifted,
    "sub": lambda number: _shifted(-number),
    "rsub": lambda number: _shifted(number, -1.0),
    "mul": _scaled,
    "rmul": _scaled,
    "truediv": DivScalar,
    "rtruediv": lambda number: _recip if number == 1 else None,
    "pow": Powf,
}


# Python is not asked what these make of a tensor: a list would repeat itself.
_DATA = (list, tuple, np.ndarray, mx.array)
_REFUSED = (*_DATA, str, bytes, bytearray, dict, set, frozenset, complex, np.generic, type(None))


def _operator(
    operation: Operation, with_number: Callable[[float], Operation | None] | None, reflected: bool
) -> Callable[..., Any]:
    divides = isinstance(operation, Div) and not reflected
    key = operation.key
    # Nothing equals a text or None: that is an answer.
    refused = _DATA if key in ("eq", "ne") else _REFUSED

    def operator(self: TensorBase, other: Any) -> Any:
        node: GraphNode = self._node
        if isinstance(other, TensorBase):
            right = self._operand(other)
            return self._wrap(record(operation, (node, right), None, operation.infer(node.meta, right.meta)))
        if not isinstance(other, _NUMBERS):
            if isinstance(other, refused):
                hint = f"; {makes_one(self, other)}" if isinstance(other, _DATA) else ""
                raise no_tensor(key, other, f"a tensor or a number{hint}")
            return NotImplemented
        if node.meta[1].is_float_:  # type: ignore[union-attr]
            if with_number is not None:
                try:
                    value = float(other)
                except OverflowError:
                    raise _too_large(key, other) from None
                with_value = with_number(value)
                if with_value is not None:
                    return self._wrap(record(with_value, (node,), None, node.meta))
        elif divides and other == 0:
            raise ArgumentValueError(
                f"div: got 0 for a tensor of {node.dtype} to be divided by; takes any other integer"
            )
        constant = _number(self, key, other)
        return self._wrap(record(operation, (constant, node) if reflected else (node, constant)))

    def power(self: TensorBase, other: Any, modulo: Any = None) -> Any:
        if modulo is not None:
            raise ArgumentTypeError(f"pow: got {described(modulo)} for a modulus; takes none")
        return operator(self, other)

    return power if key == "pow" else operator


def _too_large(name: str, value: Any) -> Error:
    return ArgumentValueError(f"{name}: got {described(value)} for an operand; takes a number that a float holds")

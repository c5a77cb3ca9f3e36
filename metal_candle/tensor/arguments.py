"""The arguments of derived methods that are no tensors: checked and made plain, by the types their records declare."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import numpy as np

from ..error import ArgumentTypeError, Error
from ..error.text import described, shown
from ..graph.operations.counts import number
from ..shape import D, Shape, several
from .base import TensorBase

Check = Callable[[Any], Any]

_DIM = "an integer or D.Minus1, D.Minus2, D.Minus(n)"


def check_of(op: str, name: str, annotation: Any) -> Check:
    """What makes an argument of the method ``op`` plain: a float, an int, a bool, a dim, dims or a shape.

    It raises ``ArgumentTypeError`` for a value of another type, ``ArgumentValueError`` for a number that no float
    holds. NumPy's numbers and arrays of rank 0 are numbers; booleans are none. Arguments of other types than these
    are left to their record.
    """
    if annotation == "float":
        return lambda value: value if type(value) is float else number(op, name, value)
    if annotation == "int":
        return lambda value: value if type(value) is int else _integer(op, name, value)
    if annotation == "bool":
        return lambda value: value if type(value) is bool else boolean(op, name, value)
    if annotation == "DimLike":
        return lambda value: value if type(value) is int else _dim(op, value)
    if annotation == "DimsLike":
        return lambda value: value if type(value) is int else _dims(op, value)
    if annotation == "ShapeLike":
        return lambda value: value if type(value) is int or type(value) is Shape else _sizes(op, name, value)
    return lambda value: value


def boolean(op: str, name: str, value: Any) -> bool:
    """``True`` or ``False``, NumPy's too. Raises ``ArgumentTypeError`` for anything else."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ArgumentTypeError(f"{op}: got {described(value)} for {name}; takes True or False")


def tensors(op: str, given: Any) -> list[Any]:
    """A list of tensors. Raises ``ArgumentTypeError`` for what is no list of them."""
    if isinstance(given, (TensorBase, str, bytes, dict)) or not isinstance(given, Iterable):
        raise ArgumentTypeError(f"{op}: got {described(given)}; takes a list of tensors")
    listed = list(given)
    for tensor in listed:
        if not isinstance(tensor, TensorBase):
            raise no_tensor(op, tensor)
    return listed


def expect_tensor(op: str, given: object, name: str = "") -> None:
    """Raise ``ArgumentTypeError`` unless it is a tensor; the argument of a function of several has a name."""
    if not isinstance(given, TensorBase):
        raise ArgumentTypeError(f"{op}: got {f'{name} ' if name else ''}{described(given)}; takes a tensor")


def no_tensor(op: str, operand: Any, takes: str = "a tensor") -> Error:
    """The error of an operand that is no tensor."""
    return ArgumentTypeError(f"{op}: got {type(operand).__name__} for an operand; takes {takes}")


def makes_one(tensor: TensorBase, data: Any) -> str:
    """How a tensor of the same kind is made of an array or a list that stands beside one."""
    kind = "LazyTensor" if type(tensor).__name__ == "LazyTensor" else "Tensor"
    if isinstance(data, np.ndarray):
        return f"{kind}.from_numpy makes one"
    return f"{kind}.from_mlx makes one" if isinstance(data, mx.array) else f"{kind}(...) makes one"


def renamed(error: Error, op: str, others: Iterable[str]) -> None:
    """Let an error's text name the method that was called instead of one of the ``others``, which it is made of.

    Its field ``op`` stays candle's name.
    """
    text = str(error)
    for other in others:
        if text.startswith((f"{other}:", f"{other} ")):
            error.args = (op + text[len(other) :],)
            return


def _index(value: Any) -> int:
    """``value`` as an int. Raises ``TypeError`` for booleans and for tensors, whose value it would ask for."""
    if isinstance(value, (bool, TensorBase)):
        raise TypeError
    return operator.index(value)


def _integer(op: str, name: str, value: Any) -> int:
    try:
        return _index(value)
    except TypeError:
        raise ArgumentTypeError(f"{op}: got {name} {described(value)}; takes an integer") from None


def _dim(op: str, value: Any) -> Any:
    if isinstance(value, (D, tuple, list)):  # that several dims are one too many is what the record says
        return value
    try:
        return _index(value)
    except TypeError:
        raise ArgumentTypeError(f"{op}: got {described(value)} for a dim; takes {_DIM}") from None


def _dims(op: str, value: Any) -> Any:
    listed = several(value)
    if len(listed) == 1 and listed[0] is value:
        return _dim(op, value)
    return tuple(_dim(op, dim) for dim in listed)


def _sizes(op: str, name: str, value: Any) -> int | tuple[Any, ...]:
    """A shape, whose hole may be ``()``."""
    listed = several(value)
    try:
        sizes = tuple(size if type(size) is tuple and not size else _index(size) for size in listed)
    except TypeError:
        got = described(value)
        if len(listed) != 1 or listed[0] is not value:
            got = f"({', '.join(map(described, listed))})"
        raise ArgumentTypeError(f"{op}: got {shown(got)} for {name}; takes an integer or several") from None
    return sizes[0] if len(listed) == 1 and listed[0] is value else sizes

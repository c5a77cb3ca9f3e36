"""Metadata of a GGUF file: numbers of a stated width, text, and arrays of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np

from ..error import Error
from ..error.text import shown


class ValueType(IntEnum):
    """The type of a value; its number is the one in the file. candle: ``gguf_file::ValueType``."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    Bool = 7
    String = 8
    Array = 9
    U64 = 10
    I64 = 11
    F64 = 12


CODES = {
    ValueType.U8: "B",
    ValueType.I8: "b",
    ValueType.U16: "H",
    ValueType.I16: "h",
    ValueType.U32: "I",
    ValueType.I32: "i",
    ValueType.F32: "f",
    ValueType.Bool: "?",
    ValueType.U64: "Q",
    ValueType.I64: "q",
    ValueType.F64: "d",
}
"""The types of one number, with its ``struct`` code."""

MAX_NESTING = 8
"""How many arrays may be in one another."""

_FLOATS = (ValueType.F32, ValueType.F64)
_SCALAR_OF = {
    "uint8": ValueType.U8,
    "int8": ValueType.I8,
    "uint16": ValueType.U16,
    "int16": ValueType.I16,
    "uint32": ValueType.U32,
    "int32": ValueType.I32,
    "uint64": ValueType.U64,
    "int64": ValueType.I64,
    "float32": ValueType.F32,
    "float64": ValueType.F64,
    "bool": ValueType.Bool,
}


def _make(kind: ValueType, content: Any) -> Value:
    return Value(kind, _checked(kind, content))


class Value:
    """One value with its type: ``Value.U32(7)``, ``Value.String("llama")``, ``Value.Array([Value.F32(0.5)])``.

    The constructors raise ``Error`` for what the type cannot hold. ``to_u8`` … ``to_f64`` give a number only of
    that very type; ``to_u64`` also of U8, U16, U32 and Bool, as in candle. candle: ``gguf_file::Value``.
    """

    __slots__ = ("_content", "_element", "_levels", "_type")
    _type: ValueType
    _content: Any
    _element: ValueType | None
    _levels: int

    def __init__(self, kind: ValueType, content: Any, element: ValueType | None = None) -> None:
        # An array of 100,000 words is one list of them, not as many values; see ``to_vec``.
        self._type, self._content, self._element = kind, content, element
        inner = max((value._levels for value in content), default=0) if element is ValueType.Array else 0
        self._levels = 0 if element is None else 1 + inner

    U8 = staticmethod(partial(_make, ValueType.U8))
    I8 = staticmethod(partial(_make, ValueType.I8))
    U16 = staticmethod(partial(_make, ValueType.U16))
    I16 = staticmethod(partial(_make, ValueType.I16))
    U32 = staticmethod(partial(_make, ValueType.U32))
    I32 = staticmethod(partial(_make, ValueType.I32))
    U64 = staticmethod(partial(_make, ValueType.U64))
    I64 = staticmethod(partial(_make, ValueType.I64))
    F32 = staticmethod(partial(_make, ValueType.F32))
    F64 = staticmethod(partial(_make, ValueType.F64))
    Bool = staticmethod(partial(_make, ValueType.Bool))
    String = staticmethod(partial(_make, ValueType.String))

    @staticmethod
    def Array(values: Sequence[Value]) -> Value:
        """An array of values of one type. An empty one is of U32, as in candle.

        Raises ``Error`` for several types, what is no ``Value``, and arrays nested deeper than files may be.
        """
        if not isinstance(values, (list, tuple)):
            raise Error(f"gguf value: got {type(values).__name__} for an array; takes a list of Values")
        listed = list(values)
        others = [type(value).__name__ for value in listed if not isinstance(value, Value)]
        if others:
            raise Error(f"gguf value: got an array of {others[0]}; takes Values, or Value.of a list")
        if any(value._levels >= MAX_NESTING for value in listed):
            raise _too_deep()
        kinds = {value.value_type() for value in listed}
        if len(kinds) > 1:
            found = ", ".join(sorted(kind.name for kind in kinds))
            raise Error(f"gguf value: got an array of {found}; takes values of one type")
        if kinds == {ValueType.Array}:
            return Value(ValueType.Array, listed, ValueType.Array)
        return Value(ValueType.Array, [value._content for value in listed], kinds.pop() if kinds else ValueType.U32)

    @staticmethod
    def of(plain: Any) -> Value:
        """The value a plain Python one stands for.

        ``bool`` is Bool, ``str`` String, ``float`` F32 (the type of GGUF's own settings: say ``Value.F64`` for more
        digits), ``int`` the first of U32, I32, U64 and I64 that holds it; NumPy's numbers and arrays keep their
        type. A list is an Array whose integers share the first type that holds all of them. Raises ``Error`` for
        anything else, and for lists nested deeper than ``MAX_NESTING``.
        """
        return _of(plain, 0)

    # --- out of it ----------------------------------------------------------------------------

    def value_type(self) -> ValueType:
        """Its type."""
        return self._type

    def element_type(self) -> ValueType | None:
        """The type of an array's values; ``None`` for other values."""
        return self._element

    def plain(self) -> Any:
        """It as a Python number, text, or list of such."""
        if self._element is ValueType.Array:
            return [value.plain() for value in self._content]
        return self._content

    def to_u8(self) -> int:
        """The number of a U8. Raises ``Error`` for another type."""
        return int(self._as(ValueType.U8))

    def to_i8(self) -> int:
        """The number of an I8. Raises ``Error`` for another type."""
        return int(self._as(ValueType.I8))

    def to_u16(self) -> int:
        """The number of a U16. Raises ``Error`` for another type."""
        return int(self._as(ValueType.U16))

    def to_i16(self) -> int:
        """The number of an I16. Raises ``Error`` for another type."""
        return int(self._as(ValueType.I16))

    def to_u32(self) -> int:
        """The number of a U32. Raises ``Error`` for another type."""
        return int(self._as(ValueType.U32))

    def to_i32(self) -> int:
        """The number of an I32. Raises ``Error`` for another type."""
        return int(self._as(ValueType.I32))

    def to_u64(self) -> int:
        """The number of a U64, U32, U16, U8, or 0 or 1 of a Bool. Raises ``Error`` for another type."""
        return int(self._as(ValueType.U64, ValueType.U32, ValueType.U16, ValueType.U8, ValueType.Bool))

    def to_i64(self) -> int:
        """The number of an I64. Raises ``Error`` for another type."""
        return int(self._as(ValueType.I64))

    def to_f32(self) -> float:
        """The number of an F32. Raises ``Error`` for another type."""
        return float(self._as(ValueType.F32))

    def to_f64(self) -> float:
        """The number of an F64. Raises ``Error`` for another type."""
        return float(self._as(ValueType.F64))

    def to_bool(self) -> bool:
        """The truth of a Bool. Raises ``Error`` for another type."""
        return bool(self._as(ValueType.Bool))

    def to_string(self) -> str:
        """The text of a String. Raises ``Error`` for another type."""
        return str(self._as(ValueType.String))

    def to_vec(self) -> list[Value]:
        """The values of an Array. Raises ``Error`` for another type."""
        values = self._as(ValueType.Array)
        if self._element is ValueType.Array:
            return list(values)
        assert self._element is not None, "an array knows its type"
        return [Value(self._element, value) for value in values]

    def _as(self, *kinds: ValueType) -> Any:
        if self._type not in kinds:
            raise Error(f"gguf value: got {shown(repr(self))}; takes {' or '.join(kind.name for kind in kinds)}")
        return self._content

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value):
            return NotImplemented
        return (self._type, self._element, self._content) == (other._type, other._element, other._content)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        if self._element is None:
            return f"{self._type.name}({self._content!r})"
        shown = ", ".join(repr(item) for item in self._content[:4]) + (", …" if len(self._content) > 4 else "")
        return f"Array({len(self._content)} of {self._element.name}: [{shown}])"


def _of(plain: Any, depth: int) -> Value:
    if isinstance(plain, Value):
        return plain
    if isinstance(plain, (np.ndarray, np.generic)):
        if plain.ndim > 1 or str(plain.dtype) not in _SCALAR_OF:
            raise Error(f"gguf value: got NumPy's {plain.dtype} of shape {plain.shape}; takes rank 0 or 1 numbers")
        kind = _SCALAR_OF[str(plain.dtype)]
        return Value(ValueType.Array, plain.tolist(), kind) if plain.ndim else _make(kind, plain.item())
    if isinstance(plain, (list, tuple)):
        if depth == MAX_NESTING:
            raise _too_deep()
        if plain and all(type(item) is int for item in plain):
            kind = _integer_type(plain)
            return Value(ValueType.Array, list(plain), kind)
        return Value.Array([_of(item, depth + 1) for item in plain])
    if isinstance(plain, bool):
        return Value.Bool(plain)
    if isinstance(plain, int):
        return _make(_integer_type([plain]), plain)
    if isinstance(plain, float):
        return Value.F32(plain)
    if isinstance(plain, str):
        return Value.String(plain)
    raise Error(f"gguf value: got {type(plain).__name__}; takes bool, int, float, str, a list of them, or a Value")


def _too_deep() -> Error:
    return Error(f"gguf value: arrays nested more than {MAX_NESTING} deep, or a list that holds itself")


def _checked(kind: ValueType, content: Any) -> Any:
    """``content`` as a value of this type holds it. Raises ``Error`` if it cannot."""
    if kind is ValueType.String:
        if isinstance(content, str):
            return content
    elif kind is ValueType.Bool:
        if isinstance(content, (bool, np.bool_)):
            return bool(content)
    elif kind in _FLOATS:
        if isinstance(content, (int, float, np.number)) and not isinstance(content, bool):
            return _float(kind, content)
    elif isinstance(content, (int, np.integer)) and not isinstance(content, bool) and _fits(kind, int(content)):
        return int(content)
    raise Error(f"gguf value: got {_brief(content)}; does not fit {kind.name}")


def _brief(content: Any) -> str:
    """What a caller gave, for an error: its type where it could be of any size or depth."""
    if isinstance(content, str):
        return shown(repr(content[:100]))
    return shown(content) if isinstance(content, (int, float, np.number, np.bool_)) else type(content).__name__


def _float(kind: ValueType, content: Any) -> float:
    """What a file would give back: F32 rounds. Raises ``Error`` for what would round to infinity."""
    try:
        rounded: float = struct.unpack("<" + CODES[kind], struct.pack("<" + CODES[kind], float(content)))[0]
    except OverflowError as error:
        raise Error(f"gguf value: got {_brief(content)}; does not fit {kind.name}") from error
    return rounded


def _fits(kind: ValueType, number: int) -> bool:
    try:
        struct.pack("<" + CODES[kind], number)
    except struct.error:
        return False
    return True


def _integer_type(numbers: Sequence[int]) -> ValueType:
    low, high = min(numbers), max(numbers)
    for kind in (ValueType.U32, ValueType.I32, ValueType.U64, ValueType.I64):
        if _fits(kind, low) and _fits(kind, high):
            return kind
    raise Error(f"gguf value: got integers from {shown(low)} to {shown(high)}; takes what 64 bits hold")

"""Values of GGUF metadata: strict types, exact numbers."""

from __future__ import annotations

from typing import Any

from metal_candle.error import Error
from metal_candle.formats.gguf_value import Value, ValueType

import numpy as np
import pytest

GETTERS = ["to_u8", "to_i8", "to_u16", "to_i16", "to_u32", "to_i32", "to_u64", "to_i64", "to_f32", "to_f64"]
OWN = {
    "to_u8": Value.U8(255),
    "to_i8": Value.I8(-128),
    "to_u16": Value.U16(65535),
    "to_i16": Value.I16(-32768),
    "to_u32": Value.U32(2**32 - 1),
    "to_i32": Value.I32(-(2**31)),
    "to_u64": Value.U64(2**64 - 1),
    "to_i64": Value.I64(-(2**63)),
    "to_f32": Value.F32(0.5),
    "to_f64": Value.F64(0.1),
    "to_bool": Value.Bool(True),
    "to_string": Value.String("é"),
    "to_vec": Value.Array([Value.U8(1)]),
}


@pytest.mark.parametrize("getter", OWN)
def test_each_getter_takes_its_type_alone(getter: str) -> None:
    for name, value in OWN.items():
        wide = getter == "to_u64" and name in ("to_u8", "to_u16", "to_u32", "to_bool")
        if name == getter or wide:
            got = getattr(value, getter)()
            if getter == "to_vec":
                assert [(type(part), part.value_type(), part.plain()) for part in got] == [(Value, ValueType.U8, 1)]
            else:
                assert got == value.plain()
            assert type(got) is {"to_bool": bool, "to_string": str, "to_vec": list}.get(
                getter, float if "_f" in getter else int
            )
        else:
            with pytest.raises(Error, match=r"gguf value: got .*; takes"):
                getattr(value, getter)()


def test_value_types() -> None:
    assert [value.value_type().name for value in OWN.values()] == [
        *["U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F32", "F64", "Bool", "String", "Array"]
    ]
    assert Value.F32(0.1).plain() == float(np.float32(0.1))
    assert Value.F64(0.1).plain() == 0.1
    assert Value.F32(float("inf")).to_f32() == float("inf")


@pytest.mark.parametrize(
    ("make", "content"),
    [
        (Value.U8, 256),
        (Value.U8, -1),
        (Value.I64, 2**63),
        (Value.U32, 1.0),
        (Value.U32, True),
        (Value.Bool, 1),
        (Value.F32, "1"),
        (Value.F32, 1e39),
        (Value.F64, 10**400),
        (Value.String, b"a"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, content: Any) -> None:
    with pytest.raises(Error, match=r"gguf value: got .*; does not fit"):
        make(content)


def test_arrays_are_of_one_type_and_may_be_nested() -> None:
    nested = Value.Array([Value.Array([Value.U8(1), Value.U8(2)]), Value.Array([Value.String("x")])])
    assert nested.plain() == [[1, 2], ["x"]]
    assert nested.to_vec()[0].to_vec() == [Value.U8(1), Value.U8(2)]
    assert nested.element_type() is ValueType.Array
    assert Value.Array([]).element_type() is ValueType.U32
    with pytest.raises(Error, match="got an array of I8, U8; takes values of one type"):
        Value.Array([Value.U8(1), Value.I8(1)])


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (True, Value.Bool(True)),
        (3, Value.U32(3)),
        (-3, Value.I32(-3)),
        (2**40, Value.U64(2**40)),
        (-(2**40), Value.I64(-(2**40))),
        (0.5, Value.F32(0.5)),
        ("text", Value.String("text")),
        ([1, -1], Value.Array([Value.I32(1), Value.I32(-1)])),
        ([2**33, -1], Value.Array([Value.I64(2**33), Value.I64(-1)])),
        ([True, False], Value.Array([Value.Bool(True), Value.Bool(False)])),
        (("a", "b"), Value.Array([Value.String("a"), Value.String("b")])),
        ([[1], [2, 3]], Value.Array([Value.Array([Value.U32(1)]), Value.Array([Value.U32(2), Value.U32(3)])])),
        ([], Value.Array([])),
        (np.int16(-5), Value.I16(-5)),
        (np.array([1, 2], np.uint8), Value.Array([Value.U8(1), Value.U8(2)])),
        (np.float64(0.1), Value.F64(0.1)),
        (Value.I8(1), Value.I8(1)),
    ],
)
def test_plain_values_have_a_type(plain: Any, expected: Value) -> None:
    assert Value.of(plain) == expected


@pytest.mark.parametrize("plain", [None, b"x", {"a": 1}, 2**64, np.zeros((2, 2)), np.array(["a"]), [1, "a"]])
def test_other_objects_are_refused(plain: Any) -> None:
    with pytest.raises(Error, match="gguf value"):
        Value.of(plain)


def test_shown() -> None:
    assert repr(Value.U32(3)) == "U32(3)"
    assert repr(Value.of(list(range(9)))) == "Array(9 of U32: [0, 1, 2, 3, …])"
    with pytest.raises(TypeError):
        hash(Value.U32(3))


def test_lists_that_are_too_deep_or_hold_themselves_are_refused() -> None:
    own: list[Any] = [1, "a"]
    own.append(own)
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    for plain in (own[2:], deep):
        with pytest.raises(Error, match="arrays nested more than 8 deep, or a list that holds itself"):
            Value.of(plain)
    value = Value.U8(1)
    for _ in range(8):
        value = Value.Array([value])
    with pytest.raises(Error, match="nested more than 8 deep"):
        Value.Array([value])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Value.of(10**5000), "got integers from <int> to <int>; takes what 64 bits hold"),
        (lambda: Value.U8(10**5000), "got <int>; does not fit U8"),
        (lambda: Value.U8("x" * 10**6), "got 'xxx.*…x*'; does not fit U8"),
        (lambda: Value.String([1] * 10**6), "got list; does not fit String"),
        (lambda: Value.Array([1, 2]), "got an array of int; takes Values, or Value.of a list"),
        (lambda: Value.Array(3), "got int for an array; takes a list of Values"),  # type: ignore[arg-type]
    ],
)
def test_errors_are_one_short_line(make: Any, message: str) -> None:
    with pytest.raises(Error, match=message) as raised:
        make()
    assert len(str(raised.value)) < 200

"""Chains of two conversions whose first changes no value, as one conversion or none."""

from __future__ import annotations

from ...dtype import DType
from ..operations.unary import ToDtype
from ..pattern import Anything, Of, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply

_EXACT: dict[DType, tuple[DType, ...]] = {
    DType.U8: (DType.I16, DType.U32, DType.I32, DType.I64, DType.BF16, DType.F16, DType.F32, DType.F64),
    DType.I16: (DType.I32, DType.I64, DType.F32, DType.F64),
    DType.U32: (DType.I64, DType.F64),
    DType.I32: (DType.I64, DType.F64),
    DType.I64: (),
    DType.BF16: (DType.F32, DType.F64),
    DType.F16: (DType.F32, DType.F64),
    DType.F32: (DType.F64,),
    DType.F64: (),
}
"""The dtypes that hold every value of a dtype: NaN, infinities and -0.0 of a float, both ends of an integer's range."""


def holds(outer: DType, inner: DType) -> bool:
    """Whether every value of ``inner`` is one of ``outer``, so that a conversion there and back changes nothing."""
    return outer is inner or outer in _EXACT[inner]


def _first_exact(root: Term, middle: Term, x: Term) -> str | None:
    start, between, end = x.dtype, middle.dtype, root.dtype
    if not holds(between, start):
        return f"{between} does not hold every value of {start}"
    # A float saturates in an integer, an integer wraps: equal only where neither happens.
    if start.is_int() and between.is_float() and end.is_int() and not holds(end, start):
        return f"{start} by way of {between} saturates in {end}, and would wrap"
    return None


def _direct(root: Term, x: Term) -> Term:
    return x if root.dtype is x.dtype else apply(ToDtype(root.dtype), x)


RULES = (
    Rule(
        "cast_cast",
        of(ToDtype, Of((ToDtype,), (Anything("x"),), {}, name="middle")),
        _direct,
        when=_first_exact,
        # What the first one made is not made again, whoever else asks for it.
        shareable=lambda operation: True,
    ),
)
"""The gradient is converted as often as the values are: floats by way of floats, which pass it, stay floats; where the
first conversion is from integers there is none; from a float to an integer, which ends it, none is exact."""

_SHAPE = ((3, 5),)
EXAMPLES = (
    Example(_SHAPE, lambda x: x.to_dtype("f32").to_dtype("bf16").exp(), "exp(x)", dtypes=("bf16",)),
    Example(_SHAPE, lambda x: x.to_dtype("f64").to_dtype("f16").exp(), "exp(x)", dtypes=("f16",)),
    Example(_SHAPE, lambda x: x.to_dtype("f32").to_dtype("f16").exp(), "exp(to_dtype(x; dtype=f16))", dtypes=("bf16",)),
    Example(
        _SHAPE,
        lambda x: x.to_dtype("f32").to_dtype("f64").exp(),
        "exp(to_dtype(to_dtype(x; dtype=f32); dtype=f64))",
        because="f32 does not hold every value of u32",
        ids=((0, 200),),
        dtypes=("f32",),
    ),
    Example(
        _SHAPE,
        lambda x: x.to_dtype("f64").to_dtype("i64").to_dtype("u8").to_dtype("f32").exp(),
        "exp(to_dtype(to_dtype(x; dtype=u8); dtype=f32))",
        ids=((0, 200),),
        dtypes=("f32",),
    ),
    Example(
        _SHAPE,
        lambda x: x.to_dtype("f64").to_dtype("u8").to_dtype("f32").exp(),
        "exp(to_dtype(to_dtype(to_dtype(x; dtype=f64); dtype=u8); dtype=f32))",
        because="u32 by way of f64 saturates in u8, and would wrap",
        ids=((0, 400),),
        dtypes=("f32",),
    ),
    Example(
        _SHAPE,
        lambda x: x.to_dtype("f16").to_dtype("f32").exp(),
        "exp(to_dtype(to_dtype(x; dtype=f16); dtype=f32))",
        because="f16 does not hold every value of f32",
        dtypes=("f32",),
    ),
    Example(
        _SHAPE,
        lambda x: x.to_dtype("i32").to_dtype(x.dtype) * x,
        "mul(to_dtype(to_dtype(x; dtype=i32); dtype=f32), x)",
        because="i32 does not hold every value of f32",
        dtypes=("f32",),
    ),
)

PASS = Pass("cast", RULES, examples=EXAMPLES, quiet=True)

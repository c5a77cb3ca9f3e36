"""Numbers beside tensors: factors in a row become one, those that change nothing go, powers become what they are.

Of integers, which wrap and truncate at each step, only what is exact is touched. A folded factor is rounded once where
each was before, and so its product is finite, or not 0, where only the value in between overflowed or underflowed.
Sums are not folded: ``(x - 1000) * 1000`` is exact near 1000, ``x * 1000 - 1000000`` is not, and ``x + c - c`` rounds.
"""

from __future__ import annotations

from typing import Any

from ...dtype import DType
from ..operations.affine import Affine, DivScalar, MulScalar
from ..operations.reduce import Mean, Sum
from ..operations.unary import Abs, Exp, Neg, Powf, Sqr, Sqrt
from ..pattern import Anything, Name, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply

_x = Anything("x")
_scaled = _x * Name("first")

DEEPEST = 8
"""Sums, means, factors and summands that are looked behind, for what a root is taken of."""

_NORMAL = {
    DType.F16: (2.0**-14, 65504.0),
    DType.BF16: (2.0**-126, 2.0**127),
    DType.F32: (2.0**-126, 2.0**127),
    DType.F64: (2.0**-1022, 2.0**1023),
}
"""Numbers that a dtype holds with all its digits, from and to."""


def _whole(number: float, dtype: DType) -> bool:
    least, most = _NORMAL[dtype]
    # A quotient's divisor is the reciprocal, and has to be held as well.
    return least <= abs(number) <= most and least <= abs(1 / number) <= most


def _in_range(root: Term, first: float, second: float) -> str | None:
    for number in (first, second, first * second):
        if number == 0 or not _whole(number, root.dtype):
            return f"a factor {number!r} is beyond the range in which {root.dtype} has all its digits"
    return None


def _scale_and_sum(root: Term, first: float, second: float) -> str | None:
    if second == 1:
        return "what is only added to stays: a fused operation may look for the sum"
    if second == 0:
        return "a factor of 0 ends the gradient, and makes NaN of an infinity"
    return _in_range(root, first, second)


def _never_negative(x: Term) -> bool:
    """Whether no element is below 0, nor -0.0, whatever the inputs are; NaN may be."""
    for _ in range(DEEPEST):
        operation = x.operation
        if isinstance(operation, (Sqr, Abs, Exp)):
            return True
        positive = (
            isinstance(operation, Affine) and operation.mul > 0 and (operation.add > 0 or str(operation.add) == "0.0")
        )
        if not (positive or isinstance(operation, (Sum, Mean))):
            return False
        x = x.inputs[0]
    return False


def _has_root(x: Term) -> str | None:
    return None if _never_negative(x) else "the power 0.5 of -0.0 is 0.0 and of -inf inf, the roots are not"


RULES = (
    # 1 is exact and 0 is not added, also to -0.0, so this is what the operation does with any dtype.
    Rule("affine_nothing", of(Affine, _x, mul=1.0, add=0.0), lambda x: x),
    Rule("times_one", of((MulScalar, DivScalar), _x, value=1.0), lambda x: x),
    Rule("neg_neg", of(Neg, of(Neg, _x)), lambda x: x),
    Rule(
        "scale_scale",
        _scaled * Name("second"),
        lambda x, first, second: apply(Affine(first * second, 0.0), x),
        when=_in_range,
    ),
    Rule(
        "scale_affine",
        of(Affine, _scaled, mul=Name("second"), add=lambda add, term: add != 0),
        lambda root, x, first, second: apply(Affine(first * second, root.operation.add), x),
        when=_scale_and_sum,
    ),
    Rule("power_1", of(Powf, _x, e=1.0), lambda x: x),
    Rule("power_2", of(Powf, _x, e=2.0), lambda x: apply(Sqr(), x)),
    Rule("power_half", of(Powf, _x, e=0.5), lambda x: apply(Sqrt(), x), when=_has_root),
)


def _chain(x: Any, length: int) -> Any:
    for _ in range(length):
        x = x + 1.0
    return x


_SHAPE = ((3, 5),)
_ALL = ("f32", "bf16", "f16", "f64")
EXAMPLES = (
    Example(_SHAPE, lambda x: (x * 1.0).exp(), "exp(x)", dtypes=_ALL),
    Example(_SHAPE, lambda x: (x - 0.0).exp(), "exp(x)", dtypes=_ALL),
    Example(_SHAPE, lambda x: (x / 1.0).exp(), "exp(x)", dtypes=_ALL),
    Example(_SHAPE, lambda x: x.mul_scalar(1.0).exp(), "exp(x)", dtypes=_ALL),
    Example(_SHAPE, lambda x: x.mul_scalar(-1.0).exp(), "exp(mul_scalar(x; value=-1.0))"),
    Example(_SHAPE, lambda x: x.neg().neg().exp(), "exp(x)", dtypes=_ALL),
    Example(_SHAPE, lambda x: (x * 2.0 * 3.0).exp(), "exp(affine(x; mul=6.0, add=0.0))", dtypes=_ALL),
    Example(_SHAPE, lambda x: (-(x.mul_scalar(3.0) / 4.0)).exp(), "exp(affine(x; mul=-0.75, add=0.0))", dtypes=_ALL),
    Example(_SHAPE, lambda x: (x * 8.0 / 8.0).exp(), "exp(x)", dtypes=_ALL),
    Example(_SHAPE, lambda x: (x / 2.0).affine(3.0, 0.5).exp(), "exp(affine(x; mul=1.5, add=0.5))", dtypes=_ALL),
    Example(_SHAPE, lambda x: (1.0 - x * 0.5).exp(), "exp(affine(x; mul=-0.5, add=1.0))", dtypes=_ALL),
    Example(
        _SHAPE,
        lambda x: (x * 2.0 + 1.0).exp(),
        "exp(affine(affine(x; mul=2.0, add=0.0); mul=1.0, add=1.0))",
        because="only added to",
    ),
    Example(
        _SHAPE,
        lambda x: ((x - 0.5) * 2.0).exp(),
        "exp(affine(affine(x; mul=1.0, add=-0.5); mul=2.0, add=0.0))",
    ),
    Example(_SHAPE, lambda x: (x + 4.0 - 4.0).exp(), "exp(affine(affine(x; mul=1.0, add=4.0); mul=1.0, add=-4.0))"),
    Example(
        _SHAPE,
        lambda x: (lambda y: y.sin() * (y * 3.0))(x * 2.0),
        "mul(sin(affine(x; mul=2.0, add=0.0)), affine(affine(x; mul=2.0, add=0.0); mul=3.0, add=0.0))",
        because="affine [3, 5] stays: 2 operations use its value",
    ),
    Example(
        _SHAPE,
        lambda x: (x * 1e-5 * 1e4).exp(),
        "exp(affine(affine(x; mul=1e-05, add=0.0); mul=10000.0, add=0.0))",
        because="a factor 1e-05 is beyond the range in which f16 has all its digits",
        dtypes=("f16",),
    ),
    Example(
        _SHAPE,
        lambda x: (x * 1e-30 * 1e-30).exp(),
        "exp(affine(affine(x; mul=1e-30, add=0.0); mul=1e-30, add=0.0))",
        because="is beyond the range in which f32 has all its digits",
    ),
    Example(
        _SHAPE,
        lambda x: (x * 2.0).affine(0.0, 1.0) + x,
        "add(affine(affine(x; mul=2.0, add=0.0); mul=0.0, add=1.0), x)",
        because="a factor of 0 ends the gradient",
    ),
    Example(
        _SHAPE,
        lambda x: (x * 2.0 * 0.0) + x,
        "add(affine(affine(x; mul=2.0, add=0.0); mul=0.0, add=0.0), x)",
    ),
    Example(
        _SHAPE,
        lambda x: x.affine(3.0, 0.0).affine(0.5, 0.0).to_dtype("f32").exp(),
        "exp(to_dtype(affine(affine(x; mul=3.0, add=0.0); mul=0.5, add=0.0); dtype=f32))",
        ids=((0, 9),),
        dtypes=("f32",),
    ),
    Example(_SHAPE, lambda x: x.powf(1.0).exp(), "exp(x)", dtypes=_ALL),
    Example(_SHAPE, lambda x: x.powf(2.0), "sqr(x)", dtypes=_ALL),
    Example(_SHAPE, lambda x: x**0.0 + x, "add(powf(x; e=0.0), x)"),
    Example(
        _SHAPE,
        lambda x: (x.sqr().sum_keepdim(1) + 1e-3) ** 0.5,
        "sqrt(affine(sum(sqr(x); dims=(1,), keepdim=True); mul=1.0, add=0.001))",
        dtypes=_ALL,
    ),
    Example(
        _SHAPE,
        lambda x: (x + 2.0) ** 0.5,
        "powf(affine(x; mul=1.0, add=2.0); e=0.5)",
        because="the power 0.5 of -0.0 is 0.0",
    ),
    # Of a long chain only the end is looked at.
    Example(
        _SHAPE,
        lambda x: _chain(x.exp(), 9).powf(0.5),
        f"powf({'affine(' * 9}exp(x){'; mul=1.0, add=1.0)' * 9}; e=0.5)",
        because="the power 0.5 of -0.0 is 0.0",
    ),
    Example(_SHAPE, lambda x: x.exp().log(), "log(exp(x))"),
)

PASS = Pass("scalar", RULES, examples=EXAMPLES)

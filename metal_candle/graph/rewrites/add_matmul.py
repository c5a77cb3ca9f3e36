"""A matrix product and what is added to it as one call, where that is not slower than the parts.

Where it is was measured, see ``metal_candle.kernels.add_matmul.slower``. Halves are rounded once, after the sum: a
float16 product that leaves the range, and comes back by what is added, keeps its value.
"""

from __future__ import annotations

from ..operations.add_matmul import AddMatmul
from ..operations.linalg import Linear, Matmul
from ..operations.movement import Transpose
from ..pattern import Name, Of, anything
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply

_a, _b, _weight, _c = anything("a b weight c")

_product = Of((Matmul,), (_a, _b), {}, name="product") | Of((Linear,), (_a, _weight), {}, name="product")
_scaled, _added = _product * Name("alpha"), _c * Name("beta")


def _factor(b: Term | None, weight: Term | None) -> Term:
    if b is not None:
        return b
    assert weight is not None
    return apply(Transpose(0, 1), weight)


def _operation(alpha: float | None, beta: float | None) -> AddMatmul:
    return AddMatmul(1.0 if alpha is None else alpha, 1.0 if beta is None else beta)


def _slower(
    root: Term,
    product: Term,
    a: Term,
    b: Term | None,
    weight: Term | None,
    c: Term,
    alpha: float | None,
    beta: float | None,
) -> str | None:
    if len(a.shape) < 2:
        return f"{list(a.shape)} is a vector; a product with what is added takes a matrix"
    if product.shape != root.shape:
        return f"the product {list(product.shape)} is broadcast to {list(root.shape)}"
    return _operation(alpha, beta).slower(a.meta, _factor(b, weight).meta, c.meta)  # type: ignore[arg-type]


def _one_call(a: Term, b: Term | None, weight: Term | None, c: Term, alpha: float | None, beta: float | None) -> Term:
    return apply(_operation(alpha, beta), a, _factor(b, weight), c)


RULES = (
    Rule(
        "add_matmul",
        _scaled + _added | _scaled + _c | _product + _added | _product + _c,
        _one_call,
        when=_slower,
    ),
)

_SHAPES = ((5, 13), (13, 7), (5, 7))
EXAMPLES = (
    Example(_SHAPES, lambda a, b, c: a @ b + c, "add_matmul(a, b, c; alpha=1.0, beta=1.0)", dtypes=("f32",)),
    Example(_SHAPES, lambda a, b, c: c + (a @ b) * 0.5, "add_matmul(a, b, c; alpha=0.5, beta=1.0)"),
    Example(_SHAPES, lambda a, b, c: c / 4.0 + -(a @ b), "add_matmul(a, b, c; alpha=-1.0, beta=0.25)"),
    Example(_SHAPES, lambda a, b, c: a @ b + c * 3.0, "add_matmul(a, b, c; alpha=1.0, beta=3.0)"),
    Example(
        ((2, 3, 13), (13, 7), (2, 3, 7)),
        lambda a, b, c: a.broadcast_matmul(b) + c,
        "add_matmul(a, b, c; alpha=1.0, beta=1.0)",
        dtypes=("f32",),
    ),
    Example(
        ((2, 5, 13), (2, 13, 7), (2, 5, 7)),
        lambda a, b, c: c + a @ b,
        "add_matmul(a, b, c; alpha=1.0, beta=1.0)",
        dtypes=("f32",),
    ),
    Example(
        ((1, 13), (13, 7), (7,)),
        lambda a, b, c: (a @ b).broadcast_add(c),
        "add_matmul(a, b, c; alpha=1.0, beta=1.0)",
        dtypes=("f32",),
    ),
    Example(
        ((32, 13), (13, 32), (32,)),
        lambda a, b, c: a @ b + c,
        "add_matmul(a, b, c; alpha=1.0, beta=1.0)",
        dtypes=("f16",),
    ),
    Example(
        ((1, 13), (13, 7), (7,)),
        lambda a, b, c: a @ b + c * 2.0,
        "add_matmul(a, b, c; alpha=1.0, beta=2.0)",
        dtypes=("f32",),
    ),
    Example(_SHAPES, lambda a, b, c: a @ b + c, "add(matmul(a, b), c)", because="by parts", dtypes=("f64",)),
    Example(
        ((1, 13), (13, 7), (5, 7)),
        lambda a, b, c: a @ b + c,
        "add(matmul(a, b), c)",
        because="the product [1, 7] is broadcast to [5, 7]",
    ),
    Example(
        _SHAPES,
        lambda a, b, c: a @ b + c + (a @ b).exp(),
        "add(add(matmul(a, b), c), exp(matmul(a, b)))",
        because="matmul [5, 7] stays: 2 operations use its value",
        dtypes=("f32",),
    ),
    Example(
        _SHAPES,
        lambda a, b, c: (a @ b) * 0.0 + c,
        "add(affine(matmul(a, b); mul=0.0, add=0.0), c)",
        dtypes=("f32",),
    ),
    Example(
        _SHAPES,
        lambda a, b, c: (a @ b).to_dtype("f64") + c.to_dtype("f64"),
        "add(to_dtype(matmul(a, b); dtype=f64), to_dtype(c; dtype=f64))",
        dtypes=("f32",),
    ),
)

PASS = Pass("add_matmul", RULES, examples=EXAMPLES)

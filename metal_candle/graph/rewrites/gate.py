"""Sigmoid, SiLU and the gate of a feed-forward block, spelled out, as one operation each.

Shazeer 2020, https://arxiv.org/abs/2002.05202. Where exp(-x) leaves the range, 1 + exp(-x) spelled out gives a value of
0 and a NaN for its gradient; the one operation gives both as they are, as far as the dtype holds them.
"""

from __future__ import annotations

from ..operations.activation import Sigmoid, Silu
from ..operations.affine import Affine
from ..operations.fused import Swiglu
from ..operations.unary import Exp, Recip
from ..pattern import Name, anything, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply

_x, _gate, _up = anything("x gate up")

_one_and_exp = of(Affine, of(Exp, _x * Name("minus")), mul=1.0, add=1.0)
_sigmoid = of(Sigmoid, _gate)


def _negated(minus: float) -> str | None:
    return None if minus == -1 else f"exp is of {minus:g} times its input; a sigmoid takes -1 times it"


def _equal_shapes(gate: Term, up: Term) -> str | None:
    if gate.shape != up.shape:
        return f"the gate {list(gate.shape)} and {list(up.shape)} are broadcast to each other"
    return None


RULES = (
    Rule("sigmoid", of(Recip, _one_and_exp), lambda x: apply(Sigmoid(), x), when=_negated),
    Rule("silu_divided", _x / _one_and_exp, lambda x: apply(Silu(), x), when=_negated),
    Rule("silu", _x * of(Sigmoid, _x), lambda x: apply(Silu(), x)),
    Rule(
        "swiglu",
        of(Silu, _gate) * _up | (_gate * _up) * _sigmoid | _gate * (_sigmoid * _up),
        lambda gate, up: apply(Swiglu(), gate, up),
        when=_equal_shapes,
    ),
)

_ONE = ((5, 13),)
_TWO = ((2, 5, 13), (2, 5, 13))
EXAMPLES = (
    Example(_ONE, lambda x: ((-x).exp() + 1).recip(), "sigmoid(x)"),
    Example(_ONE, lambda x: (1 + x.affine(-1.0, 0.0).exp()).recip(), "sigmoid(x)"),
    Example(_ONE, lambda x: x * x.sigmoid(), "silu(x)"),
    Example(_ONE, lambda x: x / (1 + x.neg().exp()), "silu(x)"),
    Example(_ONE, lambda x: (1 + (-x).exp()).recip() * x, "silu(x)"),
    Example(_TWO, lambda g, u: g.silu() * u, "swiglu(g, u)"),
    Example(_TWO, lambda g, u: u * (g.sigmoid() * g), "swiglu(g, u)"),
    Example(_TWO, lambda g, u: g / (1 + (-g).exp()) * u, "swiglu(g, u)"),
    Example(_TWO, lambda g, u: g * u * g.sigmoid(), "swiglu(g, u)"),
    Example(_TWO, lambda g, u: g * (u * g.sigmoid()), "swiglu(g, u)"),
    Example(
        ((2, 3, 14),),
        lambda x: x.chunk(2, -1)[0].silu() * x.chunk(2, -1)[1],
        "swiglu(narrow(x; dim=2, start=0, length=7), narrow(x; dim=2, start=7, length=7))",
    ),
    Example(_ONE, lambda x: x.silu() * x, "swiglu(x, x)"),
    Example(_TWO, lambda g, u: u * g.sigmoid(), "mul(u, sigmoid(g))"),
    Example(
        ((5, 13), (13,)),
        lambda g, u: g.silu() * u,
        "mul(silu(g), u)",
        because="the gate [5, 13] and [13] are broadcast to each other",
    ),
    Example(
        ((13,), (5, 13)),
        lambda g, u: g.silu() * u,
        "mul(silu(g), u)",
        because="the gate [13] and [5, 13] are broadcast",
    ),
    Example(
        _TWO,
        lambda g, u: g.silu() * u + g.silu(),
        "add(mul(silu(g), u), silu(g))",
        because="silu [2, 5, 13] stays: 2 operations use its value",
    ),
    Example(
        _ONE,
        lambda x: x * x.sigmoid() + x.sigmoid(),
        "add(mul(x, sigmoid(x)), sigmoid(x))",
        because="sigmoid [5, 13] stays",
    ),
    Example(
        _ONE,
        lambda x: x / (1 + (x * -2.0).exp()),
        "div(x, affine(exp(affine(x; mul=-2.0, add=0.0)); mul=1.0, add=1.0))",
        because="exp is of -2 times its input",
    ),
    Example(
        _ONE,
        lambda x: ((x * -2.0).exp() + 1).recip(),
        "recip(affine(exp(affine(x; mul=-2.0, add=0.0)); mul=1.0, add=1.0))",
        because="exp is of -2 times its input",
    ),
    Example(
        _ONE,
        lambda x: x / (2 + (-x).exp()),
        "div(x, affine(exp(neg(x)); mul=1.0, add=2.0))",
    ),
    Example(
        _TWO,
        lambda g, u: g.silu().to_dtype("f64") * u.to_dtype("f64"),
        "mul(to_dtype(silu(g); dtype=f64), to_dtype(u; dtype=f64))",
        dtypes=("f32",),
    ),
)

PASS = Pass("gate", RULES, examples=EXAMPLES)

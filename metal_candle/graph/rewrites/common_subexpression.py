"""Equal operations on the same terms are computed once.

Their gradients are added before they go on, not after; where these are infinite, the sum of the products may be NaN.
"""

from __future__ import annotations

from typing import Any

from ..rewrite import Example, Log, Pass
from ..term import Term, TermGraph, rebuilt


def merge(graph: TermGraph, log: Log) -> TermGraph:
    """The graph with every operation on the same inputs once; what is not ``pure`` stays."""
    known: dict[Any, Term] = {}
    replaced: dict[Term, Term] = {}
    changed = False
    for term in graph.order:
        operation = term.operation
        if operation is None:
            continue
        inputs = term.inputs
        if changed and any(source in replaced for source in inputs):
            inputs = tuple([replaced.get(source, source) for source in inputs])
        # Terms hash by identity: equal inputs have become one term by now.
        key = (operation, inputs, term.device)
        same = known.get(key) if operation.pure else None
        if same is not None:
            log.note_fired("common_subexpression", term, same)
            replaced[term] = same
            changed = True
            continue
        if inputs is not term.inputs:
            replaced[term] = term = Term(operation, inputs, term.meta, term.device, term.place, term.held)
        known[key] = term
    return rebuilt(graph, replaced) if changed else graph


PASS = Pass(
    "common_subexpression",
    function=merge,
    examples=(
        Example(((5, 7),), lambda x: x.exp() * x.exp().sin(), "mul(exp(x), sin(exp(x)))"),
        Example(((5, 7),), lambda x: x.exp() * x.sin(), "mul(exp(x), sin(x))"),
        Example(
            ((5, 7),),
            lambda x: (x * 0.0) / (x * -0.0),
            "div(affine(x; mul=0.0, add=0.0), affine(x; mul=-0.0, add=0.0))",
        ),
        Example(((5, 7), (5, 7)), lambda x, y: x.exp() * y.exp(), "mul(exp(x), exp(y))"),
    ),
)

"""A factor and a mask before a softmax, in one pass with it.

Only where a kernel of ours is launched, so on a GPU: elsewhere they take as long apart. Behind ``attention``, which
begins with a softmax, so for what is left: weights that go through dropout, or that somebody looks at.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from ...kernels.softmax_launch import why_apart
from ...shape import Shape
from ..operations.index import WhereCond
from ..operations.masked_softmax import FilledSoftmax, MaskedSoftmax
from ..operations.norm import Softmax
from ..pattern import Name, anything, last, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply
from ..views import broadcast

_x, _bias, _seeing, _hiding, _fill = anything("x bias seeing hiding fill")
_scaled = _x * Name("scale")
_scores = _scaled | _x
_filling = broadcast(_fill)
_hidden = of(WhereCond, broadcast(_hiding), _filling, _scores) | of(WhereCond, broadcast(_seeing), _scores, _filling)
# The factor marks the scores, whichever side they stand on.
_added = _scaled + broadcast(_bias) | _x + broadcast(_bias)


def _when(
    root: Term, x: Term, bias: Term | None, seeing: Term | None, hiding: Term | None, fill: Term | None
) -> str | None:
    if x.shape != root.shape:
        return f"the scores {list(x.shape)} are broadcast to {list(root.shape)}"
    if fill is not None and fill.shape.elem_count() != 1:
        return f"hidden scores are filled from {list(fill.shape)}, not with one number"
    for mask in (bias, seeing, hiding):
        if mask is not None and not _broadcasts(mask.shape, x.shape):
            return f"the mask {list(mask.shape)} does not broadcast to {list(x.shape)}"
    with mx.stream(root.device.mlx()):
        return why_apart(tuple(root.shape), root.dtype.mlx_)


def _broadcasts(shape: Shape, to: Shape) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape[::-1], to[::-1]))


def _masked(x: Term, scale: float | None, bias: Term | None) -> Term:
    return apply(MaskedSoftmax(_factor(scale)), x, *[] if bias is None else [bias])


def _filled(x: Term, scale: float | None, seeing: Term | None, hiding: Term | None, fill: Term) -> Term:
    mask = seeing or hiding
    assert mask is not None
    return apply(FilledSoftmax(_factor(scale), hiding is not None), x, mask, fill)


def _factor(scale: float | None) -> float:
    return 1.0 if scale is None else scale


RULES = (
    Rule("masked_softmax", of(Softmax, _added, dim=last) | of(Softmax, _scaled, dim=last), _masked, when=_when),
    Rule("filled_softmax", of(Softmax, _hidden, dim=last), _filled, when=_when),
)


def _hide(scores: Any, mask: Any, fill: float = -math.inf) -> Any:
    """candle's ``masked_fill``."""
    on_true = type(scores).new(fill).to_dtype(scores.dtype).broadcast_as(scores.shape)
    return mask.broadcast_as(scores.shape).where_cond(on_true, scores)


def _keep(scores: Any, mask: Any) -> Any:
    below = type(scores).new(-1e4).to_dtype(scores.dtype).broadcast_as(scores.shape)
    return mask.broadcast_as(scores.shape).where_cond(scores, below)


_FOUR = (2, 3, 5, 7)
EXAMPLES = (
    Example((_FOUR,), lambda x: (x / 4.0).softmax(-1), "masked_softmax(x; scale=0.25)", launched=True),
    Example(
        (_FOUR, (5, 7)),
        lambda x, m: (x * 0.5).broadcast_add(m).softmax(-1),
        "masked_softmax(x, m; scale=0.5)",
        launched=True,
    ),
    Example(
        (_FOUR, (2, 1, 1, 7)),
        lambda x, m: (m.broadcast_as(_FOUR) + x * 0.5).softmax(3),
        "masked_softmax(x, m; scale=0.5)",
        launched=True,
    ),
    Example(((5, 7), (5, 7)), lambda x, m: (x + m).softmax(1), "masked_softmax(x, m; scale=1.0)", launched=True),
    Example(
        (_FOUR, (5, 7)),
        lambda x, m: _hide(x * 0.5, m).softmax(-1),
        "filled_softmax(x, m, constant; scale=0.5, hides=True)",
        ids=((1, 2),),
        launched=True,
    ),
    Example(
        (_FOUR, (1, 1, 5, 7)),
        lambda x, m: _keep(x, m).softmax(-1),
        "filled_softmax(x, m, constant; scale=1.0, hides=False)",
        ids=((1, 2),),
        launched=True,
    ),
    Example(((5, 7),), lambda x: x.softmax(-1), "softmax(x; dim=1)", launched=True),
    Example(
        ((5, 7),),
        lambda x: (x * 0.5).softmax(0),
        "softmax(affine(x; mul=0.5, add=0.0); dim=0)",
        launched=True,
    ),
    Example(
        ((5, 7),),
        lambda x: (x * 0.5).softmax(1),
        "softmax(affine(x; mul=0.5, add=0.0); dim=1)",
        because="no kernel of ours is launched here",
    ),
    Example(
        ((5, 7),),
        lambda x: (x * 0.5).softmax(1) + x * 0.5,
        "add(softmax(affine(x; mul=0.5, add=0.0); dim=1), affine(x; mul=0.5, add=0.0))",
        because="affine [5, 7] stays: 2 operations use its value",
        launched=True,
    ),
    Example(
        ((1, 7), (5, 1)),
        lambda x, m: x.broadcast_add(m).softmax(-1),
        "softmax(add(x, m); dim=1)",
        because="the scores [1, 7] are broadcast to [5, 7]",
        launched=True,
    ),
    Example(
        ((5, 7), (5, 7), (5, 7)),
        lambda x, fill, m: m.where_cond(fill, x).softmax(-1),
        "softmax(where_cond(m, fill, x); dim=1)",
        ids=((2, 2),),
        because="hidden scores are filled from [5, 7], not with one number",
        launched=True,
    ),
)

PASS = Pass("masked_softmax", RULES, examples=EXAMPLES)

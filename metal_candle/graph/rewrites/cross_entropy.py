"""Log-probabilities of which only some are wanted, as in a negative log-likelihood, without the others.

candle-nn's ``loss::cross_entropy`` is ``log_softmax``, ``gather``, a sum and a factor; the last two stay.
A row of which nothing is picked has a gradient of 0, also where it is not finite and 0 times NaN was spelled out.
"""

from __future__ import annotations

from typing import Any

from ..operations.index import Gather
from ..operations.norm import LogSoftmax
from ..operations.picked import PickedLogSoftmax
from ..pattern import anything, last, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply

_x, _ids = anything("x ids")
_picked = of(Gather, of(LogSoftmax, _x, dim=last), _ids, dim=last)


def _fused(x: Term, ids: Term) -> Term:
    return apply(PickedLogSoftmax(), x, ids)


RULES = (Rule("picked_log_softmax", _picked, _fused),)


def _nll(log_probabilities: Any, target: Any) -> Any:
    """candle-nn's ``loss::nll``."""
    b = target.dim(0)
    return log_probabilities.gather(target.unsqueeze(1), 1).sum_all().affine(-1.0 / b, 0.0)


def _three_dims(logits: Any, target: Any) -> Any:
    """``(b, t, v)`` and targets ``(b, t)``."""
    return logits.log_softmax(-1).gather(target.unsqueeze(2), 2).squeeze(2)


_TWO = ((5, 7), (5,))
_IDS = ((1, 7),)
EXAMPLES = (
    Example(
        _TWO,
        lambda x, t: _nll(x.log_softmax(-1), t),
        "affine(sum(picked_log_softmax(x, unsqueeze(t; dim=1)); dims=(0, 1), keepdim=False); mul=-0.2, add=0.0)",
        ids=_IDS,
    ),
    Example(
        ((2, 3, 7), (2, 3)),
        _three_dims,
        "squeeze(picked_log_softmax(logits, unsqueeze(target; dim=2)); dim=2)",
        ids=_IDS,
    ),
    Example(((5, 7), (3, 2)), lambda x, t: x.log_softmax(1).gather(t, 1), "picked_log_softmax(x, t)", ids=_IDS),
    Example(
        ((5, 7), (3, 7)),
        lambda x, t: x.log_softmax(1).gather(t, 0),
        "gather(log_softmax(x; dim=1), t; dim=0)",
        ids=((1, 5),),
    ),
    Example(
        _TWO,
        lambda x, t: x.log_softmax(0).gather(t.unsqueeze(1), 1),
        "gather(log_softmax(x; dim=0), unsqueeze(t; dim=1); dim=1)",
        ids=_IDS,
    ),
    Example(
        _TWO,
        lambda x, t: x.log_softmax(1).to_dtype("f64").gather(t.unsqueeze(1), 1),
        "gather(to_dtype(log_softmax(x; dim=1); dtype=f64), unsqueeze(t; dim=1); dim=1)",
        ids=_IDS,
    ),
    Example(
        _TWO,
        lambda x, t: x.log_softmax(1).gather(t.unsqueeze(1), 1) + x.log_softmax(1).mean_keepdim(1),
        "add(gather(log_softmax(x; dim=1), unsqueeze(t; dim=1); dim=1), "
        "mean(log_softmax(x; dim=1); dims=(1,), keepdim=True))",
        ids=_IDS,
        because="log_softmax [5, 7] stays: 2 operations use its value",
    ),
)

PASS = Pass("cross_entropy", RULES, examples=EXAMPLES)

"""Softmax and log-softmax, spelled out, as one operation each.

Both are spelled shifted by the maximum; without that a large element overflows, which a rule must not hide. A
logarithm of a softmax is -inf where the softmax has become 0; the log-softmax keeps the number, and its gradient.
A row of -inf is NaN however it is spelled; so is then its gradient, but for the share that went through a log-sum-exp.
Halves are summed in float32 and rounded once.
"""

from __future__ import annotations

from typing import Any

from ..operations.binary import Sub
from ..operations.extreme import Max
from ..operations.movement import Reshape, Unsqueeze
from ..operations.norm import LogSoftmax, Softmax
from ..operations.reduce import Sum
from ..operations.statistics import LogSumExp
from ..operations.unary import Exp, Log, Recip
from ..pattern import Name, Of, anything, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply
from ..views import broadcast

_x, _shifted_again, _powers_again = anything("x shifted powers")
_top = broadcast(of(Max, _x, dims=Name("dims"), keepdim=True))
_powers = Of((Exp,), (_x - _top,), {}, name="powers")
_total = broadcast(of(Sum, _powers_again, dims=Name("dims"), keepdim=True))
_softmax = _powers / _total | _powers * of(Recip, _total)

_shifted = Of((Sub,), (_x, _top), {}, name="shifted")
_log_total = broadcast(of(Log, of(Sum, of(Exp, _shifted_again), dims=Name("dims"), keepdim=True)))
_reduced = of(LogSumExp, _x, dims=Name("dims"))
_log_sum = broadcast(Of((Unsqueeze, Reshape), (_reduced,), {}, name="kept"))
_log_of_softmax = of(Log, of(Softmax, _x, dim=Name("dim")))


def _when_one(root: Term, x: Term, dims: tuple[int, ...]) -> str | None:
    if root.shape != x.shape:
        return f"{list(x.shape)} is broadcast to {list(root.shape)}"
    return None if len(dims) == 1 else f"it goes over dims {list(dims)}, not one"


def _when_kept(root: Term, x: Term, dims: tuple[int, ...], kept: Term) -> str | None:
    reason = _when_one(root, x, dims)
    if reason is not None:
        return reason
    wanted = [1 if i == dims[0] else size for i, size in enumerate(x.shape)]
    return None if list(kept.shape) == wanted else f"the log-sum-exp is {list(kept.shape)}, not {wanted}"


def _as_softmax(x: Term, dims: tuple[int, ...]) -> Term:
    return apply(Softmax(dims[0]), x)


def _as_log_softmax(x: Term, dims: tuple[int, ...]) -> Term:
    return apply(LogSoftmax(dims[0]), x)


def _log_softmax_of(x: Term, dim: int) -> Term:
    return apply(LogSoftmax(dim), x)


RULES = (
    Rule("softmax", _softmax, _as_softmax, when=_when_one),
    Rule("log_softmax", _shifted - _log_total, _as_log_softmax, when=_when_one),
    Rule("log_softmax_log_sum_exp", _x - _log_sum, _as_log_softmax, when=_when_kept),
    Rule("log_softmax_of_softmax", _log_of_softmax, _log_softmax_of),
)


def _of_shifted(shifted: Any) -> Any:
    return shifted.exp() / shifted.exp().sum_keepdim(0)


def _spelled(x: Any, dim: int = -1) -> Any:
    powers = x.broadcast_sub(x.max_keepdim(dim)).exp()
    return powers.broadcast_div(powers.sum_keepdim(dim))


def _candle_log_softmax(x: Any, dim: int) -> Any:
    """candle-nn's ``log_softmax``."""
    shifted = x.broadcast_sub(x.max_keepdim(dim))
    return shifted.broadcast_sub(shifted.exp().sum_keepdim(dim).log())


_ONE = ((5, 7),)
EXAMPLES = (
    Example(_ONE, _spelled, "softmax(x; dim=1)"),
    Example(((2, 5, 7),), lambda x: _spelled(x, 1), "softmax(x; dim=1)"),
    Example(
        ((2, 5, 7),),
        lambda x: (x - x.max_keepdim(1)).exp() * (x - x.max_keepdim(1)).exp().sum_keepdim(1).recip(),
        "softmax(x; dim=1)",
    ),
    Example(
        _ONE, lambda x: _spelled(x * 0.5) * 2.0, "affine(softmax(affine(x; mul=0.5, add=0.0); dim=1); mul=2.0, add=0.0)"
    ),
    Example(
        _ONE,
        lambda x: (x - x.max_keepdim(1)).exp() / (x - x.max_keepdim(1)).exp().sum_keepdim(0),
        "div(exp(sub(x, max(x; dims=(1,), keepdim=True))), sum(exp(sub(x, max(x; dims=(1,), "
        "keepdim=True))); dims=(0,), keepdim=True))",
    ),
    Example(
        _ONE,
        lambda x: (x - x.max_keepdim(0)).exp() / (x - x.max_keepdim(0)).exp().sum_keepdim((0, 1)),
        "div(exp(sub(x, max(x; dims=(0,), keepdim=True))), sum(exp(sub(x, max(x; dims=(0,), "
        "keepdim=True))); dims=(0, 1), keepdim=True))",
    ),
    Example(_ONE, lambda x: x.exp() / x.exp().sum_keepdim(1), "div(exp(x), sum(exp(x); dims=(1,), keepdim=True))"),
    Example(
        _ONE,
        lambda x: (x - x.max_keepdim(1)).exp() / (x - x.max_keepdim(1)).exp().sum_keepdim(1) + (x - x.max_keepdim(1)),
        "add(div(exp(sub(x, max(x; dims=(1,), keepdim=True))), sum(exp(sub(x, max(x; dims=(1,), "
        "keepdim=True))); dims=(1,), keepdim=True)), sub(x, max(x; dims=(1,), keepdim=True)))",
        because="sub [5, 7] stays: 2 operations use its value",
    ),
    Example(_ONE, lambda x: _candle_log_softmax(x, 1), "log_softmax(x; dim=1)"),
    Example(((2, 5, 7),), lambda x: _candle_log_softmax(x, 0), "log_softmax(x; dim=0)"),
    Example(_ONE, lambda x: x - x.log_sum_exp(1).unsqueeze(1), "log_softmax(x; dim=1)"),
    Example(_ONE, lambda x: x.broadcast_sub(x.log_sum_exp(-1).reshape((5, 1))), "log_softmax(x; dim=1)"),
    Example(_ONE, lambda x: x.softmax(-1).log(), "log_softmax(x; dim=1)"),
    Example(
        ((1, 5),),
        lambda x: _of_shifted(x - x.max_keepdim(0).broadcast_as((3, 5))),
        "div(exp(sub(x, broadcast_as(max(x; dims=(0,), keepdim=True); shape=(3, 5)))), sum(exp(sub(x, "
        "broadcast_as(max(x; dims=(0,), keepdim=True); shape=(3, 5)))); dims=(0,), keepdim=True))",
        because="[1, 5] is broadcast to [3, 5]",
    ),
    Example(
        ((1, 5),),
        lambda x: x - x.log_sum_exp(0).unsqueeze(0).broadcast_as((3, 5)),
        "sub(x, broadcast_as(unsqueeze(log_sum_exp(x; dims=(0,)); dim=0); shape=(3, 5)))",
        because="[1, 5] is broadcast to [3, 5]",
    ),
    Example(
        ((5, 5),),
        lambda x: x - x.log_sum_exp(1).unsqueeze(0),
        "sub(x, unsqueeze(log_sum_exp(x; dims=(1,)); dim=0))",
        because="the log-sum-exp is [1, 5], not [5, 1]",
    ),
    Example(
        _ONE,
        lambda x: x - x.log_sum_exp((0, 1)).reshape((1, 1)),
        "sub(x, reshape(log_sum_exp(x; dims=(0, 1)); shape=(1, 1)))",
        because="it goes over dims [0, 1], not one",
    ),
    Example(
        _ONE,
        lambda x: x.softmax(-1).to_dtype("f64").log(),
        "log(to_dtype(softmax(x; dim=1); dtype=f64))",
        dtypes=("f32",),
    ),
)

PASS = Pass("softmax", RULES, examples=EXAMPLES)

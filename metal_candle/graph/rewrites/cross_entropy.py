"""Log-probabilities of which only some are wanted, as in a negative log-likelihood, without the others.

candle-nn's ``loss::cross_entropy`` is ``log_softmax``, ``gather``, a sum and a factor; the last two stay. Where large
logits come from a vocabulary head, they never exist at once.
"""

from __future__ import annotations

import math
from typing import Any

from ...shape import Shape
from ..operations.index import Gather
from ..operations.linalg import Linear
from ..operations.movement import Permute, Reshape, Transpose, Unsqueeze
from ..operations.norm import LogSoftmax
from ..operations.picked import PickedLogSoftmax
from ..operations.picked_head import PickedHeadLogSoftmax
from ..operations.structure import Contiguous
from ..pattern import Pattern, anything, last, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply

# From 16 MiB of float32 on. The gradient of the hidden states then costs 12 to 28 % less, that of the weight one more
# product, 30 to 70 % (128 to 512 rows, widths 256 and 576, 8192 and 32000 words, two x86-64 cores).
LEAST_LOGITS = 2**22

_x, _ids, _hidden, _weight, _columns = anything("x ids hidden weight columns")


def _swapped(operation: Transpose | Permute) -> bool:
    if isinstance(operation, Permute):
        return operation.dims == (1, 0)
    return operation.dim1 != operation.dim2


def _flat(inner: Pattern) -> Pattern:
    """With or without the leading dims merged, as rows of logits."""
    return inner | of(Reshape, inner)


_picked = of(Gather, of(LogSoftmax, _x, dim=last), _ids, dim=last)
_logits = of(Linear, _hidden, _weight) | _hidden @ _columns
_of_head = of(PickedLogSoftmax, _flat(_logits) | of(Contiguous, _flat(_logits)), _ids)


def _fused(x: Term, ids: Term) -> Term:
    return apply(PickedLogSoftmax(), x, ids)


def _when_head(root: Term, hidden: Term, weight: Term | None, columns: Term | None) -> str | None:
    matrix = weight if weight is not None else columns
    assert matrix is not None
    if len(matrix.shape) != 2:
        return f"the head's weight has {len(matrix.shape)} dims, not 2"
    rows = math.prod(hidden.shape[:-1])
    words = matrix.shape[0 if weight is not None else 1]
    if root.shape[-1] != 1 or math.prod(root.shape) != rows:
        return f"{list(root.shape)} are picked, not one of each of {rows} rows"
    if rows * words < LEAST_LOGITS:
        return f"{rows * words} logits are fewer than {LEAST_LOGITS}"
    return None


def _head(root: Term, hidden: Term, weight: Term | None, columns: Term | None, ids: Term) -> Term:
    if weight is None:
        assert columns is not None
        weight = _rows_of(columns)
    rows = math.prod(hidden.shape[:-1])
    flat = _shaped(hidden, Shape((rows, hidden.shape[-1])))
    return _shaped(apply(PickedHeadLogSoftmax(), flat, weight, _shaped(ids, Shape((rows,)))), root.shape)


def _rows_of(columns: Term) -> Term:
    """The weight ``(out, in)`` of a matrix ``(in, out)``."""
    if isinstance(columns.operation, (Transpose, Permute)) and _swapped(columns.operation):
        return columns.inputs[0]
    return apply(Transpose(0, 1), columns)


def _shaped(term: Term, shape: Shape) -> Term:
    behind = term
    while behind.shape != shape and isinstance(behind.operation, (Reshape, Unsqueeze)):
        behind = behind.inputs[0]
    return behind if behind.shape == shape else apply(Reshape(shape), term)


RULES = (
    Rule("picked_log_softmax", _picked, _fused),
    Rule("picked_head_log_softmax", _of_head, _head, when=_when_head),
)


def _nll(log_probabilities: Any, target: Any) -> Any:
    """candle-nn's ``loss::nll``."""
    b = target.dim(0)
    return log_probabilities.gather(target.unsqueeze(1), 1).sum_all().affine(-1.0 / b, 0.0)


def _three_dims(logits: Any, target: Any) -> Any:
    """``(b, t, v)`` and targets ``(b, t)``."""
    return logits.log_softmax(-1).gather(target.unsqueeze(2), 2).squeeze(2)


_TWO = ((5, 7), (5,))
_IDS = ((1, 7),)
_LARGE = ((2050, 2), (2050, 2), (2050,))
_LARGE_IDS = ((2, 2050),)
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
    Example(
        _LARGE,
        lambda h, w, t: _nll(h.matmul(w.t()).log_softmax(1), t),
        "affine(sum(reshape(picked_head_log_softmax(h, w, t); shape=(2050, 1)); dims=(0, 1), "
        "keepdim=False); mul=-0.0004878048780487805, add=0.0)",
        ids=_LARGE_IDS,
    ),
    Example(
        ((2, 1025, 2), (2, 2050), (2, 1025)),
        lambda h, w, t: (h @ w).reshape((2050, 2050)).log_softmax(1).gather(t.reshape((2050, 1)), 1),
        "reshape(picked_head_log_softmax(reshape(h; shape=(2050, 2)), transpose(w; dim1=0, dim2=1), "
        "reshape(reshape(t; shape=(2050, 1)); shape=(2050,))); shape=(2050, 1))",
        ids=_LARGE_IDS,
        dtypes=("f32",),
    ),
    Example(
        ((5, 3), (7, 3), (5,)),
        lambda h, w, t: h.matmul(w.t()).log_softmax(1).gather(t.unsqueeze(1), 1),
        "picked_log_softmax(matmul(h, transpose(w; dim1=0, dim2=1)), unsqueeze(t; dim=1))",
        ids=((2, 7),),
        because="35 logits are fewer than 4194304",
    ),
    Example(
        ((5, 3), (7, 3), (5, 2)),
        lambda h, w, t: h.matmul(w.t()).log_softmax(1).gather(t, 1),
        "picked_log_softmax(matmul(h, transpose(w; dim1=0, dim2=1)), t)",
        ids=((2, 7),),
        because="[5, 2] are picked, not one of each of 5 rows",
    ),
    Example(
        ((2, 5, 3), (2, 3, 7), (2, 5, 1)),
        lambda h, w, t: (h @ w).log_softmax(2).gather(t, 2),
        "picked_log_softmax(matmul(h, w), t)",
        ids=((2, 7),),
        because="the head's weight has 3 dims, not 2",
    ),
)

PASS = Pass("cross_entropy", RULES, examples=EXAMPLES)

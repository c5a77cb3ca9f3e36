"""Log-probabilities of which only some are wanted, of logits that are a vocabulary head's: these never exist at once.

Where they are large enough: see ``LEAST_LOGITS``.
"""

from __future__ import annotations

import math
from typing import Any

from ...shape import Shape
from ..operations.index import Gather
from ..operations.linalg import Linear
from ..operations.movement import Reshape
from ..operations.norm import LogSoftmax
from ..operations.picked_head import PickedHeadLogSoftmax
from ..pattern import anything, last, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply
from ..views import laid_out, shaped, transposed

# From 16 MiB of float32 on. The gradient of the hidden states then costs 12 to 28 % less, that of the weight one more
# product, 30 to 70 % (128 to 512 rows, widths 256 and 576, 8192 and 32000 words, two x86-64 cores).
LEAST_LOGITS = 2**22

_hidden, _weight, _columns, _ids = anything("hidden weight columns ids")

_logits = of(Linear, _hidden, _weight) | _hidden @ _columns
# The leading dims may be merged, to rows of logits.
_rows = _logits | of(Reshape, _logits)
_of_head = of(Gather, of(LogSoftmax, laid_out(_rows), dim=last), _ids, dim=last)


def _when(root: Term, hidden: Term, weight: Term | None, columns: Term | None) -> str | None:
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
        weight = transposed(columns)
    rows = math.prod(hidden.shape[:-1])
    flat = shaped(hidden, Shape((rows, hidden.shape[-1])))
    return shaped(apply(PickedHeadLogSoftmax(), flat, weight, shaped(ids, Shape((rows,)))), root.shape)


RULES = (Rule("picked_head_log_softmax", _of_head, _head, when=_when),)


def _loss(logits: Any, target: Any) -> Any:
    """candle-nn's ``loss::cross_entropy``."""
    b = target.dim(0)
    return logits.log_softmax(1).gather(target.unsqueeze(1), 1).sum_all().affine(-1.0 / b, 0.0)


_LARGE = ((2050, 2), (2050, 2), (2050,))
_LARGE_IDS = ((2, 2050),)
EXAMPLES = (
    Example(
        _LARGE,
        lambda h, w, t: _loss(h.matmul(w.t()), t),
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
        "gather(log_softmax(matmul(h, transpose(w; dim1=0, dim2=1)); dim=1), unsqueeze(t; dim=1); dim=1)",
        ids=((2, 7),),
        because="35 logits are fewer than 4194304",
    ),
    Example(
        ((5, 3), (7, 3), (5, 2)),
        lambda h, w, t: h.matmul(w.t()).log_softmax(1).gather(t, 1),
        "gather(log_softmax(matmul(h, transpose(w; dim1=0, dim2=1)); dim=1), t; dim=1)",
        ids=((2, 7),),
        because="[5, 2] are picked, not one of each of 5 rows",
    ),
    Example(
        ((2, 5, 3), (2, 3, 7), (2, 5, 1)),
        lambda h, w, t: (h @ w).log_softmax(2).gather(t, 2),
        "gather(log_softmax(matmul(h, w); dim=2), t; dim=2)",
        ids=((2, 7),),
        because="the head's weight has 3 dims, not 2",
    ),
)

PASS = Pass("vocabulary_head", RULES, examples=EXAMPLES)

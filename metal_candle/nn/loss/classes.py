"""Losses of class ids."""

from __future__ import annotations

from typing import Any, TypeVar

import mlx.core as mx

from ...dtype import DType
from ...error import (
    ArgumentTypeError,
    ArgumentValueError,
    InvalidIndexError,
    ShapeMismatchBinaryOpError,
    UnexpectedNumberOfDimsError,
)
from ...error.text import described
from ...graph.operation import Meta
from ...graph.operations.counts import integer, number
from ...graph.operations.cross_entropy import CrossEntropy, HeadCrossEntropy
from ...graph.operations.ids import expect_ids
from ...graph.operations.weighted import Kept, Weighted
from ...tensor.arguments import renamed
from ...tensor.base import TensorBase
from .reduction import Reduction, checked_reduction, expect_tensors, reduced, weights_of, wide

T = TypeVar("T", bound=Any)


def nll(
    inp: T,
    target: TensorBase,
    *,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    mask: TensorBase | None = None,
) -> T:
    """The negative log-likelihood: ``-inp[…, target]`` of log-probabilities ``(n, c)`` and ids ``(n,)``.

    More leading dims are taken, too: ``(…, c)`` and ``(…)``, which candle refuses. Raises
    ``ShapeMismatchBinaryOpError``, ``UnsupportedDTypeForOpError`` for targets that are no ids, and, when evaluated,
    ``InvalidIndexError`` for a target that is no class; the largest value of the ids' dtype gives 0 and counts in the
    mean, as in candle. candle: ``candle_nn::loss::nll``.
    """
    expect_tensors("nll", inp=inp)
    ids, weights = _targets("nll", inp, inp.shape[-1:], target, ignore_index, mask, reduction)
    try:
        picked = inp.gather(ids.unsqueeze(-1), -1).squeeze(-1)
    except InvalidIndexError as error:
        renamed(error, "nll", ["gather"])
        raise
    return reduced(wide(picked).neg(), weights, reduction, inp.dtype)  # type: ignore[no-any-return]


def cross_entropy(
    inp: T,
    target: TensorBase,
    *,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    mask: TensorBase | None = None,
    label_smoothing: float = 0.0,
) -> T:
    """``nll`` of the log-softmax of logits ``(n, c)``, or ``(…, c)``, over the last dim, in one operation.

    The log-probabilities never exist; the gradient is the one array as large as the logits that is made. Where these
    come from a vocabulary head, ``linear_cross_entropy`` does without both. The keywords are those of ``nn.loss``;
    targets of -100, which PyTorch ignores, are ignored by ``ignore_index=-100``. Raises as ``nll`` does, and
    ``ArgumentValueError`` for smoothing outside 0..1. candle: ``candle_nn::loss::cross_entropy``.
    """
    smoothing = _smoothing("cross_entropy", label_smoothing)
    expect_tensors("cross_entropy", inp=inp)
    ids, weights = _targets("cross_entropy", inp, inp.shape[-1:], target, ignore_index, mask, reduction)
    losses = inp._record(CrossEntropy(smoothing), ids)
    return reduced(losses, weights, reduction, inp.dtype)  # type: ignore[no-any-return]


def linear_cross_entropy(
    hidden: T,
    weight: TensorBase,
    target: TensorBase,
    *,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    mask: TensorBase | None = None,
    label_smoothing: float = 0.0,
) -> T:
    """``cross_entropy`` of the logits ``hidden · weightᵀ``, a block at a time: neither they nor their gradient exist.

    ``hidden`` ``(…, h)``, ``weight`` ``(v, h)`` as a ``Linear`` has it, ids ``(…)``. Rows that do not count cost
    nothing, unless ``compile`` hides which. The result is in F32, of F64 in F64, also for halves. Raises as
    ``cross_entropy`` does. candle has none; the technique is that of Hsu et al. 2024 (Liger kernels),
    https://arxiv.org/abs/2410.10989, and of Wijmans et al. 2024 (Cut Cross-Entropy), https://arxiv.org/abs/2411.09009.
    """
    smoothing = _smoothing("linear_cross_entropy", label_smoothing)
    expect_tensors("linear_cross_entropy", hidden=hidden, weight=weight)
    if weight.rank != 2 or weight.shape[1:] != hidden.shape[-1:]:
        takes = "hidden (…, h) and weight (v, h)"
        raise ShapeMismatchBinaryOpError("linear_cross_entropy", hidden.shape, weight.shape, takes)
    ids, weights = _targets("linear_cross_entropy", hidden, weight.shape[:1], target, ignore_index, mask, reduction)
    rows, shape = ids.elem_count(), ids.shape
    if len(shape) != 1:
        hidden, ids = hidden.reshape((rows, hidden.shape[-1])), ids.reshape((rows,))
    losses = hidden._record(HeadCrossEntropy(smoothing), hidden._lift(weight), ids)
    if len(shape) != 1:
        losses = losses.reshape(shape)
    return reduced(losses, weights, reduction, losses.dtype)  # type: ignore[no-any-return]


def _smoothing(op: str, value: object) -> float:
    smoothing = number(op, "label_smoothing", value)
    if not 0 <= smoothing <= 1:
        raise ArgumentValueError(f"{op}: got label_smoothing {smoothing}; takes a number from 0 to 1")
    return smoothing


def _targets(
    op: str,
    inp: Any,
    classes: tuple[int, ...],
    target: object,
    ignore_index: object,
    mask: object,
    reduction: object,
) -> tuple[Any, Any]:
    """Ids, of which those that do not count name nothing, and the weights of the rows or ``None``."""
    checked_reduction(op, reduction)
    if not isinstance(target, TensorBase):
        raise ArgumentTypeError(f"{op}: got target {described(target)}; takes a tensor of ids")
    if inp.rank < 2:
        raise UnexpectedNumberOfDimsError(op, "2 or more", inp.shape)
    expect_ids(op, Meta(target.shape, target.dtype))
    if inp.shape[:-1] != target.shape:
        takes = "(n, c) or (…, c), and a target for each row, (n,) or (…)"
        raise ShapeMismatchBinaryOpError(op, inp.shape, target.shape, takes)
    ids = inp._lift(target)
    weights = weights_of(op, ids, mask)
    if ignore_index is not None:
        counted = ids.ne(_ignored(op, ignore_index, ids.dtype, classes[0]))
        weights = counted if weights is None else _float(weights)._record(Weighted(), counted)
    return (ids, None) if weights is None else (ids._record(Kept(), weights), weights)


def _float(mask: Any) -> Any:
    return mask if mask.dtype.is_float() else mask.to_dtype(DType.F32)


def _ignored(op: str, ignore_index: object, dtype: DType, classes: int) -> int:
    """The id that stands for ``ignore_index`` among ids of ``dtype``.

    A negative one among unsigned ids is what a conversion to them has made of it, -100 of U32 4294967196, unless that
    is a class. Raises ``ArgumentTypeError``, ``ArgumentValueError``.
    """
    index = integer(op, "ignore_index", ignore_index)
    info = mx.iinfo(dtype.mlx_)
    found = index + info.max + 1 if index < 0 == info.min else index
    if not info.min <= found <= info.max or (found != index and found < classes):
        raise ArgumentValueError(f"{op}: got ignore_index {described(index)}; takes what targets of {dtype} can be")
    return found

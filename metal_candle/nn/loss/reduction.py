"""What all losses share: weights of their elements, and how they become one number."""

from __future__ import annotations

from typing import Any, Literal, get_args

from ...dtype import DType
from ...error import ArgumentTypeError, ArgumentValueError, ShapeMismatchBinaryOpError
from ...error.text import described
from ...graph.operations.weighted import Weighted, WeightedMean
from ...tensor.arguments import expect_tensor

Reduction = Literal["mean", "sum", "none"]


def checked_reduction(op: str, reduction: object) -> None:
    """Raise ``ArgumentTypeError`` or ``ArgumentValueError`` unless it is one of ``Reduction``."""
    if reduction not in get_args(Reduction):
        kind = ArgumentValueError if isinstance(reduction, str) else ArgumentTypeError
        raise kind(f"{op}: got reduction {described(reduction)}; takes 'mean', 'sum' or 'none'")


def expect_tensors(op: str, **given: object) -> None:
    """Raise ``ArgumentTypeError`` unless all are tensors."""
    for name, value in given.items():
        expect_tensor(op, value, name)


def wide(losses: Any) -> Any:
    """Losses of halves in F32, others as they are."""
    return losses.to_dtype(DType.F32) if losses.dtype in (DType.F16, DType.BF16) else losses


def weights_of(op: str, losses: Any, mask: Any) -> Any:
    """The mask, one weight for each of ``losses``, a tensor of which the shape counts; ``None`` without one.

    Raises ``ArgumentTypeError``, ``ShapeMismatchBinaryOpError``.
    """
    if mask is None:
        return None
    expect_tensors(op, mask=mask)
    given, shape = mask.shape, losses.shape
    if len(given) > len(shape) or any(a not in (1, b) for a, b in zip(reversed(given), reversed(shape))):
        raise ShapeMismatchBinaryOpError(op, given, shape, "a mask that broadcasts to the losses")
    lifted = losses._lift(mask)
    return lifted if given == shape else lifted.broadcast_as(shape)


def reduced(losses: Any, weights: Any, reduction: Reduction, dtype: DType) -> Any:
    """Losses of F32 or F64 reduced, in ``dtype``; ``weights``, if there are, have their shape."""
    if reduction == "mean" and weights is not None:
        result = losses._record(WeightedMean(), weights)
    else:
        if weights is not None:
            losses = losses._record(Weighted(), weights)
        # The sum of nothing is 0, its mean NaN.
        if reduction == "none":
            result = losses
        elif reduction == "sum" or not losses.elem_count():
            result = losses.sum_all()
        else:
            result = losses.mean_all()
    return result if result.dtype is dtype else result.to_dtype(dtype)

"""Losses of numbers, element by element."""

from __future__ import annotations

from typing import Any, TypeVar

from ...error import ArgumentValueError, ShapeMismatchBinaryOpError
from ...graph.operation import Meta
from ...graph.operations.binary import Sub
from ...graph.operations.counts import number
from ...graph.operations.linalg import expect_floats
from ...graph.operations.loss import BinaryCrossEntropyWithLogit, Huber
from ...graph.operations.weighted import Kept
from ...tensor.base import TensorBase
from .reduction import Reduction, checked_reduction, expect_tensors, reduced, weights_of, wide

T = TypeVar("T", bound=Any)


def mse(inp: T, target: TensorBase, *, reduction: Reduction = "mean", mask: TensorBase | None = None) -> T:
    """The squared error ``(inp - target)²`` of two float tensors of one shape and dtype.

    Raises ``ShapeMismatchBinaryOpError``, ``DTypeMismatchError``, ``UnsupportedDTypeForOpError``. candle:
    ``candle_nn::loss::mse``.
    """
    difference, weights = _difference("mse", inp, target, mask, reduction)
    return reduced(difference.sqr(), weights, reduction, inp.dtype)  # type: ignore[no-any-return]


def huber(
    inp: T, target: TensorBase, delta: float, *, reduction: Reduction = "mean", mask: TensorBase | None = None
) -> T:
    """Of the difference d of two float tensors ``d² / 2`` up to ``|d| = delta``, ``delta · (|d| - delta / 2)`` beyond.

    Raises as ``mse`` does, and ``ArgumentValueError`` for a delta that is not positive. Huber 1964; candle:
    ``candle_nn::loss::huber``.
    """
    size = number("huber", "delta", delta)
    if not size > 0:
        raise ArgumentValueError(f"huber: got delta {size}; takes a positive number")
    difference, weights = _difference("huber", inp, target, mask, reduction)
    return reduced(difference._record(Huber(size)), weights, reduction, inp.dtype)  # type: ignore[no-any-return]


def binary_cross_entropy_with_logit(
    inp: T, target: TensorBase, *, reduction: Reduction = "mean", mask: TensorBase | None = None
) -> T:
    """``-(t · log(sigmoid(x)) + (1 - t) · log(1 - sigmoid(x)))`` of logits x and targets t from 0 to 1.

    Exact for any logit, where candle's gives inf or NaN from some 17 (F32) on. Raises as ``mse`` does. candle:
    ``candle_nn::loss::binary_cross_entropy_with_logit``.
    """
    op = "binary_cross_entropy_with_logit"
    logits, targets, weights = _operands(op, inp, target, mask, reduction)
    logits, targets = wide(logits), wide(targets)
    if weights is not None:
        logits, targets = logits._record(Kept(), weights), targets._record(Kept(), weights)
    losses = logits._record(BinaryCrossEntropyWithLogit(), targets)
    return reduced(losses, weights, reduction, inp.dtype)  # type: ignore[no-any-return]


def _difference(op: str, inp: Any, target: object, mask: object, reduction: object) -> tuple[Any, Any]:
    """``inp - target``, 0 where the weight is 0, in F32 at least; and the weights or ``None``."""
    inp, target, weights = _operands(op, inp, target, mask, reduction)
    difference = wide(inp._record(Sub(), target))
    return (difference, None) if weights is None else (difference._record(Kept(), weights), weights)


def _operands(op: str, inp: Any, target: Any, mask: object, reduction: object) -> tuple[Any, Any, Any]:
    checked_reduction(op, reduction)
    expect_tensors(op, inp=inp, target=target)
    expect_floats(op, Meta(inp.shape, inp.dtype), Meta(target.shape, target.dtype))
    if inp.shape != target.shape:
        raise ShapeMismatchBinaryOpError(op, inp.shape, target.shape, "equal shapes; nothing is broadcast")
    return inp, inp._lift(target), weights_of(op, inp, mask)

"""What candle's own tests use: rounded values, and tensors that have to be equal; ``candle_core::test_utils``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .error import UnexpectedDTypeError
from .shape import expect_rank
from .tensor.base import TensorBase

__test__ = False  # pytest looks for tests in modules of such a name


def to_vec0_round(t: TensorBase, digits: int) -> float:
    """The number of a rank-0 float tensor, rounded to so many decimals, halves away from zero.

    The product with the power of ten is rounded in the tensor's dtype, at least F32, as candle does; the quotient
    is a Python float, so that it equals the decimal literal. Raises ``UnexpectedNumberOfDimsError``,
    ``UnexpectedDTypeError`` for integers.

    candle: ``to_vec0_round(t: &Tensor, digits: i32) -> Result<f32>``
    """
    rounded: float = _rounded(t, digits, 0)
    return rounded


def to_vec1_round(t: TensorBase, digits: int) -> list[float]:
    """The numbers of a 1-D float tensor, rounded as by ``to_vec0_round``. Raises as it does."""
    rounded: list[float] = _rounded(t, digits, 1)
    return rounded


def to_vec2_round(t: TensorBase, digits: int) -> list[list[float]]:
    """The rows of a 2-D float tensor, rounded as by ``to_vec0_round``. Raises as it does."""
    rounded: list[list[float]] = _rounded(t, digits, 2)
    return rounded


def to_vec3_round(t: TensorBase, digits: int) -> list[list[list[float]]]:
    """The nested lists of a 3-D float tensor, rounded as by ``to_vec0_round``. Raises as it does."""
    rounded: list[list[list[float]]] = _rounded(t, digits, 3)
    return rounded


def assert_tensor_eq(t1: TensorBase, t2: TensorBase) -> None:
    """Raise ``AssertionError`` unless both tensors have the same shape and equal elements; NaN equals nothing.

    Raises ``DTypeMismatchError`` for two dtypes.

    candle: ``assert_tensor_eq(t1: &Tensor, t2: &Tensor) -> Result<()>``
    """
    if t1.shape != t2.shape:
        raise AssertionError(f"shapes differ: {tuple(t1.shape)} and {tuple(t2.shape)}")
    equal = t1.eq(t2).numpy().astype(bool)  # type: ignore[attr-defined]
    if not equal.all():
        at = tuple(int(place) for place in np.argwhere(~equal)[0])
        left, right = (t.numpy()[at].item() for t in (t1, t2))
        raise AssertionError(
            f"{int((~equal).sum())} of {equal.size} elements differ, the first at {at}: {left}, {right}"
        )


def _rounded(t: TensorBase, digits: int, rank: int) -> Any:
    expect_rank(t.shape, rank, f"to_vec{rank}_round")
    if not t.dtype.is_float():
        raise UnexpectedDTypeError(f"to_vec{rank}_round", "a float dtype", t.dtype)
    values = t.numpy()
    wide = values if values.dtype == np.float64 else values.astype(np.float32)
    scale = 10.0**digits
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = wide * wide.dtype.type(scale)
        whole = np.trunc(scaled)
        away = whole + np.copysign(np.abs(scaled - whole) >= 0.5, scaled)
        return (np.where(np.isfinite(scaled), away, scaled).astype(np.float64) / scale).tolist()

"""One call for what every layer and function of ``nn`` has to do: values on all kinds of tensors, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor

import numpy as np
from slope import assert_slopes
from tolerance import VALUE, Tolerance, assert_near

__all__ = ["assert_slopes", "check", "check_dtypes", "normal"]

FLOATS = [DType.F32, DType.F16, DType.BF16]


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Standard normal float32 numbers, the same for the same seed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(
    function: Callable[..., Any],
    arrays: tuple[Any, ...],
    want: Any,
    *,
    dtype: DType | None = None,
    tolerance: Tolerance | None = None,
) -> None:
    """Assert that ``function`` of tensors of ``arrays`` gives ``want``, an array: eager, lazy and compiled.

    Float arrays are given as ``dtype`` (theirs where it is ``None``), which the result then has, too.
    """

    def tensor(kind: Any, array: Any) -> Any:
        made = kind.new(np.asarray(array))
        return made.to_dtype(dtype) if dtype is not None and made.dtype.is_float() else made

    results = {
        "eager": function(*(tensor(Tensor, array) for array in arrays)),
        "lazy": function(*(tensor(LazyTensor, array) for array in arrays)),
        "compiled": mc.compile(function)(*(tensor(Tensor, array) for array in arrays)),
    }
    for how, result in results.items():
        assert isinstance(result, LazyTensor if how == "lazy" else Tensor), how
        assert dtype is None or result.dtype is dtype or not result.dtype.is_float(), how
        near = tolerance or VALUE[result.dtype if result.dtype in VALUE else DType.F32]
        assert_near(result.numpy(), want, near)


def check_dtypes(function: Callable[..., Any], arrays: tuple[Any, ...], reference: Callable[..., Any]) -> None:
    """``check`` in every float dtype against ``reference`` of the same, rounded, numbers in float64."""
    for dtype in FLOATS:
        rounded = [_rounded(array, dtype) for array in arrays]
        check(function, tuple(rounded), reference(*rounded), dtype=dtype)


def _rounded(array: Any, dtype: DType) -> Any:
    array = np.asarray(array)
    if array.dtype.kind != "f":
        return array
    return Tensor.new(array.astype(np.float32)).to_dtype(dtype).to_dtype(DType.F32).numpy().astype(np.float64)

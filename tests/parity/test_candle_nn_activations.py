"""``nn.Activation`` and ``nn.ops`` beside candle's own Python binding, where that has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import DType
from metal_candle.nn import Activation, ops

import numpy as np
import pytest
from both import FLOATS, Case, Operand, f32

functional = pytest.importorskip("candle.functional")
X = np.array([[-6.0, -2.5, -1.0, -0.0, 0.5, 1.0], [3.0, 0.25, -0.125, 2.0, 4.5, -3.0]])

# candle's function, ours, and within how many roundings: exp, tanh and erf are other polynomials there, and what is
# left of 1 + erf(x) for a negative x has the roundings of 1.
PAIRS: list[tuple[Callable[[Any], Any], Callable[[Any], Any], float, float]] = [
    (functional.gelu, Activation.Gelu, 8, 4e-7),
    (functional.relu, Activation.Relu, 0, 0.0),
    (functional.silu, Activation.Silu, 8, 0.0),
    (functional.silu, Activation.Swish, 8, 0.0),
    (lambda t: functional.relu(t) * functional.relu(t), Activation.Relu2, 0, 0.0),
    (lambda t: functional.softmax(t, -1), ops.softmax_last_dim, 12, 0.0),
    (lambda t: functional.softmax(t, 0), lambda t: ops.softmax(t, 0), 12, 0.0),
    (lambda t: functional.softmax(t, 1).log(), lambda t: ops.log_softmax(t, 1), 12, 1e-6),
    (lambda t: functional.silu(t.narrow(1, 0, 3)) * t.narrow(1, 3, 3), Activation.Swiglu, 8, 0.0),
]


@pytest.mark.parametrize(("their_function", "our_function", "ulps", "absolute"), PAIRS)
def test_float32(
    their_function: Callable[[Any], Any], our_function: Callable[[Any], Any], ulps: float, absolute: float
) -> None:
    for values in (X, np.stack([*X, X[0]]).T[:, ::-1].reshape(3, 6), 0.1 * X):
        Case(their_function, (f32(values),), our_function, ulps, absolute).check()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("their_function", "our_function"),
    [(functional.relu, Activation.Relu), (functional.silu, Activation.Silu), (functional.gelu, Activation.Gelu)],
    ids=["relu", "silu", "gelu"],
)
def test_dtypes(their_function: Callable[[Any], Any], our_function: Callable[[Any], Any], dtype: DType) -> None:
    """candle computes halves step by step in the half, we round once; its erf of F64 is good to 1e-7 or so."""
    ulps, absolute = {DType.F64: (8, 1e-6), DType.F32: (8, 4e-7)}.get(dtype, (4, 2 * float(_epsilon(dtype))))
    if our_function is Activation.Relu:
        ulps, absolute = 0, 0.0
    Case(their_function, (Operand(X, dtype),), our_function, ulps, absolute).check()


def _epsilon(dtype: DType) -> float:
    return 2.0**-7 if dtype is DType.BF16 else 2.0**-10

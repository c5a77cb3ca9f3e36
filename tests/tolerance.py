"""How far a result may be from its reference, by dtype: in this one place."""

from __future__ import annotations

from typing import NamedTuple

from metal_candle import DType

import numpy as np


class Tolerance(NamedTuple):
    """``|got - want| <= absolute + relative · |want|``."""

    relative: float
    absolute: float


# A float32 result of sums over some hundred terms, and the halves' own rounding: 2^-11 and 2^-8 of the value,
# doubled because operands are rounded too.
VALUE = {
    DType.F64: Tolerance(1e-12, 1e-12),
    DType.F32: Tolerance(2e-5, 2e-6),
    DType.F16: Tolerance(2e-3, 2e-3),
    DType.BF16: Tolerance(1.6e-2, 1.6e-2),
}
# A gradient against central differences of a float64 reference with step 1e-5, whose own error is near 1e-9 of the
# values; a float32 gradient has float32's.
GRADIENT = {DType.F64: Tolerance(1e-6, 1e-7), DType.F32: Tolerance(2e-4, 2e-5)}


def assert_near(got: object, want: object, tolerance: Tolerance) -> None:
    """Assert equal shapes and near values; NaN and infinities have to be in the same places."""
    np.testing.assert_equal(np.shape(got), np.shape(want))  # type: ignore[arg-type]
    np.testing.assert_allclose(
        np.asarray(got, np.float64), np.asarray(want, np.float64), tolerance.relative, tolerance.absolute
    )

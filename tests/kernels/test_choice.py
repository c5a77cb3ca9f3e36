"""A choice of values or 0: exact whatever the values, as MLX's own choice is."""

from __future__ import annotations

from metal_candle.kernels.choice import SMALL, as_bytes, or_zero

import mlx.core as mx
import numpy as np
import pytest

DTYPES = [mx.float16, mx.bfloat16, mx.float32, mx.float64, mx.int32, mx.uint8, mx.int64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0, 7, SMALL, SMALL + 3])
@pytest.mark.parametrize("how", ["bool", "bytes", "strided", "broadcast"])
def test_the_same_as_where(dtype: mx.Dtype, size: int, how: str) -> None:
    rng = np.random.default_rng(size)
    numbers = rng.integers(0, 100, size).astype(np.float32)
    if mx.issubdtype(dtype, mx.floating):
        numbers[: size // 2] = np.resize([np.inf, -np.inf, np.nan, -0.0, 1e-7], size // 2)
    with mx.stream(mx.cpu):
        values, keep = mx.array(numbers).astype(dtype), mx.array(rng.integers(0, 2, size).astype(bool))
        if how == "bytes":
            keep = as_bytes(keep)
            assert keep.dtype == mx.uint8
        elif how == "strided" and size:
            values, keep = (mx.stack([each, each], axis=-1)[:, 0] for each in (values, keep))
        elif how == "broadcast":
            values = mx.broadcast_to(values[:1], (size,)) if size else values
        expected, found = mx.where(keep, values, mx.array(0, dtype)), or_zero(keep, values)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert mx.array_equal(found, expected, equal_nan=True)


def test_mlx_refuses_to_differentiate_it() -> None:
    """Rather than to give zeros."""
    with mx.stream(mx.cpu), pytest.raises(ValueError, match="Not implemented"):
        mx.eval(mx.grad(lambda x: or_zero(x > 0, x).sum())(mx.ones((SMALL,))))

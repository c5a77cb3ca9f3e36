"""Constants that kernels keep: the same as made anew, at hand in every thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from metal_candle.kernels import rms_norm, softmax

import mlx.core as mx
import numpy as np
import pytest


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (64, 200), (5, 0), (400, 400)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_causal_masks(shape: tuple[int, int], dtype: mx.Dtype) -> None:
    rows, columns = shape
    mask = softmax.causal_mask(rows, columns, dtype)
    assert (mask.shape, mask.dtype) == (shape, dtype)
    seen = np.tri(rows, columns, columns - rows, bool)
    np.testing.assert_array_equal(np.array(mask.astype(mx.float32)), np.where(seen, 0, -np.inf))
    kept = dtype == mx.float32 and rows * columns <= softmax.KEPT
    assert (softmax.causal_mask(rows, columns, dtype) is mask) == kept


def test_sums_of_rows_in_another_thread_than_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rms_norm._ones.cache_clear()
    monkeypatch.setattr(rms_norm, "KEPT", 8)

    def sums() -> list[np.ndarray]:
        with mx.stream(mx.new_stream(mx.cpu)):
            return [np.array(rms_norm.row_sum(mx.ones((2, n)))) for n in (1, 8, 9)]

    for _ in range(2):
        with ThreadPoolExecutor(1) as pool:
            for got, n in zip(pool.submit(sums).result(), (1, 8, 9), strict=True):
                np.testing.assert_array_equal(got, [[n], [n]])
    assert rms_norm._ones.cache_info().currsize == 2

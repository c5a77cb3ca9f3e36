"""Work in blocks of rows: the same rows, each once, in their order."""

from __future__ import annotations

from metal_candle.kernels import slices
from metal_candle.kernels.slices import by_rows, filled_by_rows, in_blocks

import mlx.core as mx
import numpy as np
import pytest


@pytest.mark.parametrize("shape", [(1, 4), (7, 4), (9, 4), (2, 5, 4), (3, 2, 5, 4), (4,), (0, 4), (3, 50)])
def test_every_row_is_given_once(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE", 20)
    x = mx.random.normal(shape, key=mx.random.key(0))
    beside = mx.arange(x.size // shape[-1]).reshape(*shape[:-1], 1).astype(mx.float32)
    sizes: list[int] = []

    def function(rows: mx.array, places: mx.array) -> mx.array:
        assert (rows.ndim, places.shape) == (2, (rows.shape[0], 1))
        sizes.append(rows.shape[0])
        return mx.concatenate([rows * 2, places], axis=1)

    got = by_rows(function, x, beside)
    assert got.shape == (*shape[:-1], shape[-1] + 1)
    np.testing.assert_array_equal(np.array(got[..., :-1]), np.array(x) * 2)
    np.testing.assert_array_equal(np.array(got[..., -1:]), np.array(beside))
    assert sum(sizes) == x.size // shape[-1]
    # A rest of up to half a block goes with it.
    assert all(size * shape[-1] <= 30 or size == 1 for size in sizes)


def test_several_results_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE", 8)
    x = mx.arange(20, dtype=mx.float32).reshape(5, 4)
    parts = in_blocks(lambda rows: (rows + 1, rows.sum(axis=0)), x)
    assert [part[0].shape for part in parts] == [(2, 4), (2, 4), (1, 4)]
    np.testing.assert_array_equal(np.array(mx.concatenate([part[0] for part in parts])), np.array(x + 1))
    np.testing.assert_array_equal(np.array(mx.stack([part[1] for part in parts]).sum(axis=0)), np.array(x.sum(axis=0)))


@pytest.mark.parametrize("shape", [(1, 4), (7, 4), (95, 4), (2, 50, 4), (3, 50)])
def test_written_into_the_result(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``by_rows``, also where nothing may be begun, within a transformation."""
    monkeypatch.setattr(slices, "SLICE", 20)
    x = mx.random.normal(shape, key=mx.random.key(0))
    beside = mx.arange(x.size // shape[-1]).reshape(*shape[:-1], 1).astype(mx.float32)

    def function(x: mx.array, beside: mx.array) -> mx.array:
        return filled_by_rows(lambda rows, places: rows * 2 + places, x, beside)

    for got in (function(x, beside), mx.compile(function)(x, beside), function(x, beside)):
        np.testing.assert_array_equal(np.array(got), np.array(x * 2 + beside))
    gradient = mx.grad(lambda x: function(x, beside).sum())(x)
    np.testing.assert_array_equal(np.array(gradient), np.full(shape, 2))
    half = filled_by_rows(lambda rows: rows + 1, x.astype(mx.bfloat16))
    np.testing.assert_array_equal(
        np.array(half.astype(mx.float32)), np.array((x.astype(mx.bfloat16) + 1).astype(mx.float32))
    )

"""Pooling and normalising against NumPy."""

from __future__ import annotations

from metal_candle import LazyTensor, Tensor
from metal_candle.embeddings.pooling import cls_pool, max_pool, mean_pool, mean_sqrt_pool, normalize

import numpy as np
import pytest

HIDDEN = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32) - 1.0
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
LENGTHS = MASK.sum(1)


def rows() -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """The tokens of each text alone."""
    return [HIDDEN[i, :length] for i, length in enumerate(LENGTHS)]


WANTED = {
    mean_pool: np.stack([row.mean(0) for row in rows()]),
    mean_sqrt_pool: np.stack([row.sum(0) / np.sqrt(len(row)) for row in rows()]),
    max_pool: np.stack([row.max(0) for row in rows()]),
    cls_pool: HIDDEN[:, 0],
}


@pytest.mark.parametrize("dtype", ["f32", "u8", "u32", "i64"])
@pytest.mark.parametrize("pool", WANTED, ids=lambda pool: pool.__name__)
def test_pooling_sees_tokens_only(pool: object, dtype: str) -> None:
    hidden, mask = Tensor.from_numpy(HIDDEN), Tensor.from_numpy(MASK).to_dtype(dtype)
    found = pool(hidden, mask)  # type: ignore[operator]
    np.testing.assert_allclose(found.numpy(), WANTED[pool], atol=1e-6)  # type: ignore[index]
    lazy = pool(LazyTensor.from_tensor(hidden), mask)  # type: ignore[operator]
    assert isinstance(lazy, LazyTensor)
    np.testing.assert_allclose(lazy.numpy(), found.numpy(), atol=1e-6)


@pytest.mark.parametrize("pool", [mean_pool, mean_sqrt_pool])
def test_a_text_without_tokens_is_zero(pool: object) -> None:
    found = pool(Tensor.from_numpy(HIDDEN), Tensor.zeros((3, 5), "u32"))  # type: ignore[operator]
    np.testing.assert_array_equal(found.numpy(), np.zeros((3, 7), np.float32))


def test_rows_get_unit_length_and_zero_rows_stay() -> None:
    given = np.array([[3.0, 4.0], [0.0, 0.0], [-1e-3, 0.0], [1e-20, 0.0]], np.float32)
    found = normalize(Tensor.from_numpy(given)).numpy()
    np.testing.assert_allclose(found[:3], [[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]], atol=1e-7)
    assert found[3, 0] == np.float32(1e-20) / np.float32(1e-12)  # the norm is clamped, not the row


def test_gradients_are_finite_also_of_a_zero_row() -> None:
    from metal_candle import Var

    var = Var.from_tensor(Tensor.from_numpy(np.array([[3.0, 4.0], [1e-3, 2.0]], np.float32)))
    grads = normalize(var.as_tensor()).sqr().sum_all().backward()
    np.testing.assert_allclose(grads[var].numpy(), np.zeros((2, 2)), atol=1e-6)  # the length does not change

"""Targets that name no class: NaN for their rows and a gradient of 0, in definitions, variants and launches."""

from __future__ import annotations

from typing import Any

from metal_candle.kernels import cross_entropy as of_logits_module
from metal_candle.kernels import head_cross_entropy as head_module
from metal_candle.kernels import picked_log_softmax as picked_module
from metal_candle.kernels.cross_entropy import cross_entropy
from metal_candle.kernels.head_cross_entropy import head_cross_entropy
from metal_candle.kernels.kernel import Kernel
from metal_candle.kernels.picked_log_softmax import picked_log_softmax
from metal_candle.kernels.variant import Variant, differentiated_by_mlx

import mlx.core as mx
import numpy as np
import pytest
from launched import launched, normal

N = 33
OUTSIDE = (-1, N, 10**9, 2**32 + 1, -(2**40))


def ways(kernel: Kernel, *variants: Variant) -> list[Any]:
    plain = differentiated_by_mlx("reference", kernel.reference)
    return [pytest.param(variant, id=variant.name) for variant in (plain, *variants)]


def expect(way: Variant, kernel: Kernel, inputs: tuple[mx.array, ...], known: Any, *params: Any) -> None:
    """Rows that are known have the definition's losses and gradients for targets inside; the others NaN and 0."""
    *arrays, targets = inputs
    inside = mx.array(np.where(known, np.array(targets), 0))
    rows = np.array(known)[..., None] if kernel is not picked_log_softmax else np.array(known)
    outputs = way.forward(*arrays, targets, *params)
    result = outputs[0]
    want = np.array(kernel.reference(*arrays, inside, *params))
    np.testing.assert_allclose(np.array(result), np.where(known, want, np.nan), rtol=1e-5, atol=1e-5)
    cotangent = normal(*result.shape, key=8)
    needs = (True,) * len(arrays) + (False,)
    blank = mx.where(mx.array(known), cotangent, mx.array(0.0))
    _, wanted = mx.vjp(lambda *a: kernel.reference(*a, inside, *params), list(arrays), [blank])
    for saved in (outputs, (result,)):
        found = way.vjp(cotangent, (*arrays, targets), saved, needs, *params)
        for got, exact in zip(found, wanted):
            # float32 sums of some dozen terms.
            np.testing.assert_allclose(np.array(got), np.array(exact), rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(np.array(found[0])[~rows.any(axis=-1)], 0)
    by_mlx = mx.vjp(lambda *a: kernel(*a, targets, *params), list(arrays), [cotangent])[1]
    for got, exact in zip(by_mlx, wanted):
        np.testing.assert_allclose(np.array(got), np.array(exact), rtol=2e-5, atol=2e-5)


def rows_of(dtype: Any = np.int64) -> tuple[mx.array, mx.array, Any]:
    """Logits, a target for each row, those outside among others, and which are inside."""
    targets = np.array([3, *OUTSIDE, 0, N - 1, 5], np.int64)
    targets = targets if dtype == np.int64 else np.array([t % 2**32 for t in (3, -1, N, 10**9, 0, N - 1)], np.uint32)
    return normal(len(targets), N) * 3, mx.array(targets.astype(dtype)), (targets >= 0) & (targets < N)


@pytest.mark.parametrize("dtype", [np.int64, np.uint32])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("way", ways(cross_entropy, of_logits_module._ROWS, of_logits_module._FAST))
def test_losses_of_logits(way: Variant, smoothing: float, dtype: Any) -> None:
    x, targets, known = rows_of(dtype)
    if way is of_logits_module._FAST and smoothing:
        return  # which has none
    expect(way, cross_entropy, (x, targets), known, smoothing)


@pytest.mark.parametrize("dtype", [np.int64, np.uint32])
@pytest.mark.parametrize("way", ways(picked_log_softmax, picked_module._ROWS, picked_module._FAST))
def test_log_probabilities(way: Variant, dtype: Any) -> None:
    x, ids, known = rows_of(dtype)
    expect(way, picked_log_softmax, (x, ids[:, None]), known[:, None])
    if way is not picked_module._FAST:  # which takes one of a row
        several, inside = mx.stack([ids, ids[::-1], ids], axis=1), np.stack([known, known[::-1], known], axis=1)
        expect(way, picked_log_softmax, (x, several), inside)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("way", ways(head_cross_entropy, head_module._BLOCKS, head_module._CHUNKS))
def test_losses_of_hidden_states(way: Variant, smoothing: float) -> None:
    for dtype in (np.int64, np.uint32):
        _, targets, known = rows_of(dtype)
        hidden, weight = normal(len(known), 16), normal(N, 16, key=1)
        expect(way, head_cross_entropy, (hidden, weight, targets), known, smoothing)
        (alone,) = way.forward(hidden, weight, targets, smoothing, False)[:1]
        np.testing.assert_array_equal(np.isnan(np.array(alone)), ~known)


@pytest.mark.parametrize("dtype", [np.int64, np.uint32])
def test_launches(device: str, dtype: Any) -> None:
    x, targets, known = rows_of(dtype)
    for kernel, ids, inside in (
        (cross_entropy, targets, known),
        (picked_log_softmax, targets[:, None], known[:, None]),
    ):
        launched(kernel, [x, ids])
        expect(kernel.choose(x, ids), kernel, (x, ids), inside)
    expect(cross_entropy.choose(x, targets, 0.1), cross_entropy, (x, targets), known, 0.1)
    wide = normal(len(known), 1030)
    expect(cross_entropy.choose(wide, targets), cross_entropy, (wide, targets), np.array(targets) // 1030 == 0)


def test_ids_of_eight_bits() -> None:
    # 300 - 256 is 44: of uint8 no id is as far as 300.
    x, ids = normal(3, 300), mx.array([255, 44, 3], mx.uint8)
    got = np.array(cross_entropy.reference(x, ids))
    np.testing.assert_allclose(got, np.array(cross_entropy.reference(x, ids.astype(mx.int32))), rtol=1e-6)
    assert np.isfinite(got).all()
    assert np.isnan(np.array(cross_entropy.reference(x, mx.array([-1, 1, -128], mx.int8)))).tolist() == [1, 0, 1]


def test_ids_that_are_no_integers() -> None:
    for kernel in (cross_entropy, picked_log_softmax):
        with pytest.raises(ValueError, match=r"ids of classes: got mlx\.core\.float32; takes integers"):
            kernel.reference(normal(2, 5), mx.zeros((2, 1)) if kernel is picked_log_softmax else mx.zeros((2,)))

"""The vocabulary head's loss: memory, weights of tokens, evaluation."""

from __future__ import annotations

from metal_candle.kernels import head_cross_entropy as module
from metal_candle.kernels.cross_entropy import cross_entropy
from metal_candle.kernels.head_cross_entropy import head_cross_entropy
from metal_candle.kernels.kernel import on_cpu

import mlx.core as mx
import numpy as np
import pytest

ROWS, WIDTH, WORDS = 300, 32, 20_000


@pytest.fixture
def head() -> tuple[mx.array, mx.array, mx.array]:
    keys = mx.random.split(mx.random.key(0), 3)
    hidden = mx.random.normal((ROWS, WIDTH), key=keys[0])
    weight = mx.random.normal((WORDS, WIDTH), key=keys[1])
    targets = mx.random.randint(0, WORDS, (ROWS,), key=keys[2])
    mx.eval(hidden, weight, targets)
    return hidden, weight, targets


@pytest.mark.skipif(not on_cpu(), reason="a GPU takes larger blocks")
def test_the_logits_never_exist_at_once(head: tuple[mx.array, mx.array, mx.array]) -> None:
    rows = 2000
    hidden = mx.random.normal((rows, WIDTH), key=mx.random.key(1))
    targets = mx.zeros((rows,), mx.int32)
    mx.eval(hidden, targets)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    outputs = head_cross_entropy.forward(hidden, head[1], targets)
    mx.eval(outputs[:2])
    # All logits are 153 MiB. A block of 128 x 4096 is 2 MiB; MLX allocates some dozens of operations ahead.
    assert mx.get_peak_memory() - before < 80 * 2**20


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_evaluation_alone(head: tuple[mx.array, mx.array, mx.array], smoothing: float) -> None:
    (alone,) = head_cross_entropy.forward(*head, smoothing, False)
    losses, gradient, _ = head_cross_entropy.forward(*head, smoothing)
    assert gradient.shape == (ROWS, WIDTH)
    np.testing.assert_allclose(np.array(alone), np.array(losses), rtol=1e-6)
    np.testing.assert_allclose(
        np.array(losses), np.array(head_cross_entropy.reference(*head, smoothing)), rtol=1e-5, atol=1e-5
    )


def test_weights_of_tokens(head: tuple[mx.array, mx.array, mx.array]) -> None:
    hidden, weight, targets = head
    weights = (mx.arange(ROWS) % 3).astype(mx.float32)
    got = mx.grad(lambda h: (head_cross_entropy(h, weight, targets) * weights).sum())(hidden)
    # MLX's own float32 gradient is off by 1.4e-4 here, hence float64.
    h, w = (np.array(a, np.float64) for a in (hidden, weight))
    powers = np.exp(h @ w.T - (h @ w.T).max(axis=1, keepdims=True))
    want = (powers / powers.sum(axis=1, keepdims=True) @ w - w[np.array(targets)]) * np.array(weights)[:, None]
    np.testing.assert_allclose(np.array(got), want, rtol=1e-5, atol=2e-5)
    assert not got[::3].any()


def test_the_maximum_may_come_in_any_block() -> None:
    # Logits up to 900, growing from block to block and shrinking: the running sums are rescaled, or kept.
    for order in (1, -1):
        weight = mx.linspace(0, 300, 3 * module.WORDS)[::order][:, None]
        hidden = mx.array([[1.0], [3.0], [-3.0], [0.0]])
        targets = mx.array([5, 9000, 12000, 1])
        got = head_cross_entropy.forward(hidden, weight, targets)
        np.testing.assert_allclose(
            np.array(got[0]), np.array(head_cross_entropy.reference(hidden, weight, targets)), rtol=2e-6, atol=2e-4
        )
        gradient = mx.grad(lambda h, w=weight, t=targets: head_cross_entropy.reference(h, w, t).sum())(hidden)
        np.testing.assert_allclose(np.array(got[1]), np.array(gradient), rtol=2e-4, atol=2e-3)


def test_nan_shows_in_its_row_only(head: tuple[mx.array, mx.array, mx.array]) -> None:
    hidden, weight, targets = head
    hidden = mx.concatenate([mx.full((1, WIDTH), mx.nan), hidden[1:]])
    losses, gradient, _ = head_cross_entropy.forward(hidden, weight, targets)
    assert np.isnan(np.array(losses)).tolist() == [True] + [False] * (ROWS - 1)
    assert np.isnan(np.array(gradient)).any(axis=1).tolist() == [True] + [False] * (ROWS - 1)


def test_plain_cross_entropy_of_extreme_logits() -> None:
    logits = mx.concatenate([mx.full((3, 2000), -1e30), mx.array([[0.0], [1e30], [-mx.inf]])], axis=1)
    targets = mx.array([2000, 0, 0])
    got = np.array(cross_entropy(logits, targets))
    np.testing.assert_allclose(got, np.array(cross_entropy.reference(logits, targets)), rtol=1e-6)

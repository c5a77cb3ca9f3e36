"""Losses of a large vocabulary: what exists at once; and a classifier that is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var
from metal_candle.nn import loss

import mlx.core as mx
import numpy as np
import pytest
from checking import normal
from tolerance import VALUE, assert_near


@pytest.mark.parametrize("keywords", [{}, {"label_smoothing": 0.1}, {"ignore_index": 7}], ids=str)
def test_memory_of_a_large_vocabulary(keywords: dict[str, Any]) -> None:
    """The gradient is the only array as large as the logits; of hidden states there is none."""
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("a GPU's launches have their own test")
    rows, words, width = 512, 16384, 8
    logits = Var.from_tensor(Tensor.from_mlx(mx.random.normal((rows, words), key=mx.random.key(0))))
    # A head of four times the rows: of its blocks there are some dozens of 2 MiB under way.
    hidden, weight = Var.from_tensor(Tensor.new(normal(4 * rows, width))), Tensor.new(normal(words, width))
    size = logits.mlx().nbytes

    def peak(function: Callable[[], Any]) -> float:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        kept = function()
        found = mx.get_peak_memory() - before
        del kept
        return found / size

    def step(function: Callable[..., Any], variable: Var, *more: Any, **keywords: Any) -> Any:
        result = function(LazyTensor.from_tensor(variable), *more, target_of(variable), **keywords)
        return result.backward()[variable].mlx()

    def target_of(variable: Any) -> Tensor:
        return Tensor.new(np.arange(variable.dim(0)) * 7)

    target = target_of(logits)

    def naive(logits: Any) -> Any:
        return mx.mean(mx.logsumexp(logits, -1) - mx.take_along_axis(logits, target.mlx()[:, None], -1)[:, 0])

    # Beside, blocks of 512 KiB are under way. Spelled out in MLX it is four times the logits, at the least twice.
    assert peak(lambda: loss.cross_entropy(logits, target, **keywords).mlx()) < 0.6
    assert peak(lambda: step(loss.cross_entropy, logits, **keywords)) < 1.6
    assert peak(lambda: step(loss.linear_cross_entropy, hidden, weight, **keywords)) < 4 * 0.6
    assert peak(lambda: mx.eval(found := mx.grad(naive)(logits.mlx())) or found) > 1.9


def test_training_of_a_classifier() -> None:
    """A loop as a candle user writes it: the loss falls alike by logits and by the head, lazily and compiled."""
    inputs = normal(64, 8, seed=3)
    target = Tensor.new((inputs[:, 0] > 0).astype(np.int64) + (inputs[:, 1] > 0))

    def trained(function: Callable[..., Any], through: Callable[[Any], Any]) -> list[float]:
        weight = Var.new(np.zeros((3, 8), np.float32))

        def step(weight: Any) -> Any:
            found = function(LazyTensor.new(inputs) if through is not mc.compile else Tensor.new(inputs), weight)
            return found, found.backward()[weight]

        seen, run = [], through(step)
        for _ in range(20):
            found, gradient = run(weight)
            weight.set(weight - gradient * 0.5)
            seen.append(found.to_scalar())
        return seen

    ways = [
        trained(lambda x, w: loss.cross_entropy(x.matmul(x._lift(w).t()), target), lambda step: step),
        trained(lambda x, w: loss.linear_cross_entropy(x, w, target), lambda step: step),
        trained(lambda x, w: loss.linear_cross_entropy(x, w, target), mc.compile),
    ]
    for way in ways:
        assert way[-1] < 0.75 * way[0]
        assert_near(way, ways[0], VALUE[DType.F32])

"""However many lengths the rows have, a compiled step sees few shapes."""

from __future__ import annotations

from pathlib import Path

import metal_candle as mc
from metal_candle.training.batch_loss import targets_of
from metal_candle.training.data import Example, collate
from metal_candle.training.data.shapes import most_shapes, rounded_length, rounded_rows

import numpy as np


def test_500_lengths_are_traced_a_bounded_number_of_times() -> None:
    rng = np.random.default_rng(0)
    step = mc.compile(lambda ids, rows, targets, weights: weights.sum_all(), max_plans=most_shapes(1024))
    lengths = rng.permutation(np.arange(2, 1002, 2))
    assert len(lengths) == 500
    for number, length in enumerate(lengths.tolist()):
        trained = rng.random(length) < rng.random()
        trained[-1] = True
        batch = collate([Example([3] * length, trained.tolist(), Path("made.jsonl"), number)], 2, 1024)
        assert batch.inputs.shape[1] >= length - 1
        step(*targets_of(batch, batch.trained_tokens).tensors())
    assert step.traces <= most_shapes(1024) == 80


def test_padding_is_small() -> None:
    for length in range(1, 1025):
        padded = rounded_length(length, 16, 1024)
        assert length <= padded <= max(length + 15, 1.25 * length)
    assert rounded_length(100, 16, 100) == 100
    assert rounded_length(120, 16, 100) == 120


def test_rows_of_targets() -> None:
    assert [rounded_rows(n, 512, 32) for n in (0, 1, 128, 129, 512)] == [128, 128, 128, 256, 512]
    assert rounded_rows(5, 16, 32) == 32

"""The largest batch of a run, told by lengths alone, is the one that going through all batches finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from metal_candle.training import TrainingConfig
from metal_candle.training import epochs as module
from metal_candle.training.data import Batch, Example
from metal_candle.training.epochs import epoch_batches, largest_batch
from metal_candle.training.memory import longest_batch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

LENGTHS = some.lists(some.integers(2, 90), min_size=1, max_size=40)


def examples(lengths: list[int]) -> list[Example]:
    rng = np.random.default_rng(len(lengths))
    rows = [(rng.integers(3, 64, length).tolist(), (rng.random(length) < 0.5).tolist()) for length in lengths]
    return [Example(tokens, targets, Path("made.jsonl"), i + 1) for i, (tokens, targets) in enumerate(rows)]


def by_making_all(config: TrainingConfig, rows: list[Example], most: int | None) -> Batch:
    taken = chain.from_iterable(epoch_batches(config, rows, epoch, 1) for epoch in range(config.num_epochs))
    return max(islice(taken, most), key=lambda each: (each.inputs.size, each.inputs.shape[1], each.trained_tokens))


@given(LENGTHS, some.integers(1, 5), some.integers(1, 4), some.booleans(), some.none() | some.integers(1, 9))
def test_it_is_the_one_of_all_batches(
    lengths: list[int], size: int, epochs: int, packing: bool, most: int | None
) -> None:
    config = TrainingConfig(
        num_epochs=epochs, batch_size=size, packing=packing, max_length=64, seed=7, max_steps=most, accumulation_steps=2
    )
    rows = examples(lengths)
    limit = None if most is None else 2 * most
    found, wanted = longest_batch(config, rows, 1), by_making_all(config, rows, limit)
    for name in ("inputs", "targets", "mask", "segments", "positions"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name


class _MadeAnew(Sequence[Any]):
    """Examples that are another object each time they are asked for."""

    def __init__(self, rows: list[Example]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: Any) -> Any:
        return replace(self._rows[i])


@pytest.mark.parametrize("packing", [False, True])
def test_of_a_data_set_that_keeps_no_examples(packing: bool) -> None:
    config, rows = TrainingConfig(num_epochs=2, batch_size=3, packing=packing, max_length=64), examples([20, 9, 4] * 30)
    found, wanted = longest_batch(config, _MadeAnew(rows), 1), longest_batch(config, rows, 1)
    assert np.array_equal(found.inputs, wanted.inputs)
    assert np.array_equal(found.mask, wanted.mask)


@pytest.mark.parametrize("packing", [False, True])
def test_one_batch_is_made(monkeypatch: pytest.MonkeyPatch, packing: bool) -> None:
    made = []
    for name in ("collate", "collate_packed"):
        make = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, make=make: (made.append(1), make(*given))[1])
    largest_batch(TrainingConfig(num_epochs=5, packing=packing), examples([20] * 50), 0, None)
    assert made == [1]

"""Which batches a run takes, and how many updates they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from .config import TrainingConfig
from .data.batching import Batch, batch_count, batches, collate, grouped, padded_length
from .data.packing import collate_packed, grouped_packed, packed_batch_count, packed_batches, packed_length
from .data.tokenizing import Example


def epoch_batches(config: TrainingConfig, examples: Sequence[Example], epoch: int, pad_id: int) -> Iterator[Batch]:
    """The batches of an epoch, packed or sorted by length: a function of data, configuration and epoch alone."""
    form = packed_batches if config.packing else batches
    return form(examples, config.batch_size, seed=config.seed, epoch=epoch, pad_id=pad_id, max_length=config.max_length)


def largest_batch(config: TrainingConfig, examples: Sequence[Example], pad_id: int, most: int | None) -> Batch:
    """The batch of most tokens, then longest, then most trained tokens, of the first ``most`` or of all epochs.

    Lengths alone tell it: no other batch is made.
    """
    epochs, size, seed = range(config.num_epochs), config.batch_size, config.seed

    def key(length: int, rows: int, taken: Iterable[Example]) -> tuple[int, int, int]:
        return rows * length, length, sum(sum(example.targets[1:]) for example in taken)

    if config.packing:
        packed = chain.from_iterable(grouped_packed(examples, size, seed, epoch, config.max_length) for epoch in epochs)
        sequences = max(
            islice(packed, most),
            key=lambda those: key(packed_length(those, config.max_length), len(those), chain.from_iterable(those)),
        )
        return collate_packed(sequences, pad_id, config.max_length)
    plain = chain.from_iterable(grouped(examples, size, seed, epoch) for epoch in epochs)
    rows = max(islice(plain, most), key=lambda those: key(padded_length(those, config.max_length), len(those), those))
    return collate(rows, pad_id, config.max_length)


def planned_steps(config: TrainingConfig, examples: Sequence[Example]) -> int:
    """How many updates a run over these examples makes, over all epochs.

    An update takes ``accumulation_steps`` batches, at the end of an epoch what is left. A batch is ``batch_size``
    rows or, with ``packing``, as many sequences of up to ``max_length`` tokens: fewer and larger updates.
    """
    total = 0
    for epoch in range(config.num_epochs):
        if config.packing:
            of_epoch = packed_batch_count(
                examples, config.batch_size, seed=config.seed, epoch=epoch, max_length=config.max_length
            )
        else:
            of_epoch = batch_count(examples, config.batch_size)
        total += -(-of_epoch // config.accumulation_steps)
        if config.max_steps is not None and total >= config.max_steps:
            return config.max_steps
    return total

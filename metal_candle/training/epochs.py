"""Which batches a run takes, and how many updates they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .config import TrainingConfig
from .data.batching import Batch, batch_count, batches
from .data.packing import packed_batch_count, packed_batches
from .data.tokenizing import Example


def epoch_batches(config: TrainingConfig, examples: Sequence[Example], epoch: int, pad_id: int) -> Iterator[Batch]:
    """The batches of an epoch, packed or sorted by length: a function of data, configuration and epoch alone."""
    form = packed_batches if config.packing else batches
    return form(examples, config.batch_size, seed=config.seed, epoch=epoch, pad_id=pad_id, max_length=config.max_length)


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

"""The loop of a run: updates, evaluations, and the callbacks that are told of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ..error import TrainingError
from .data.batching import Batch
from .data.tokenizing import Example
from .events import EvalMetrics, StepMetrics

if TYPE_CHECKING:
    from .trainer import AdapterTrainer


class _Unfinished(Exception):
    """A callback ended an evaluation between two of its batches."""


class Group(NamedTuple):
    """The batches of one update, and where in the data they end."""

    epoch: int
    batch: int
    batches: list[Batch]


def groups(trainer: AdapterTrainer, train: Sequence[Example]) -> Iterator[Group]:
    """The groups that are left, from the trainer's position on."""
    position, size = trainer.position, trainer.config.accumulation_steps
    for epoch in range(position.epoch, trainer.config.num_epochs):
        taken = position.batch if epoch == position.epoch else 0
        source = itertools.islice(trainer.batches(train, epoch), taken, None)
        while batches := list(itertools.islice(source, size)):
            taken += len(batches)
            yield Group(epoch, taken, batches)


def events(
    trainer: AdapterTrainer, train: Sequence[Example], valid: Sequence[Example]
) -> Iterator[StepMetrics | EvalMetrics]:
    """What ``AdapterTrainer.run`` gives."""
    callbacks, failed = trainer.callbacks, None
    total = trainer.total_steps(train)
    trainer.take_random_key()
    trainer.resume_callbacks()
    try:
        callbacks.start(trainer, total)
        yield from _steps(trainer, train, valid, total)
    except GeneratorExit:  # the caller left the loop
        raise
    except BaseException as error:
        failed = error
        raise
    finally:
        trainer.adapter.set_training(False)
        callbacks.end(trainer, failed)


def _steps(
    trainer: AdapterTrainer, train: Sequence[Example], valid: Sequence[Example], total: int
) -> Iterator[StepMetrics | EvalMetrics]:
    callbacks, every = trainer.callbacks, trainer.config.eval_every
    left = groups(trainer, train)
    trainer.adapter.set_training(True)
    while not callbacks.stopped:
        # Also where a run stopped between an update and the evaluation after it.
        start = trainer.step == 0
        due = start or (every > 0 and trainer.step % every == 0)
        if valid and due and trainer.position.evaluated != trainer.step:
            yield from _evaluation(trainer, valid)
        callbacks.step_end(trainer)
        group = next(left, None) if trainer.step < total and not callbacks.stopped else None
        if group is None:
            break
        with trainer.undone_by_errors():
            metrics = trainer.train_step(group.batches)
            trainer.position = replace(trainer.position, epoch=group.epoch, batch=group.batch)
            callbacks.step(trainer, metrics)
        yield metrics
    if valid and not callbacks.stopped and trainer.position.evaluated != trainer.step:
        yield from _evaluation(trainer, valid)


def _evaluation(trainer: AdapterTrainer, valid: Sequence[Example]) -> Iterator[EvalMetrics]:
    def after_batch(done: int, total: int) -> None:
        trainer.callbacks.evaluation_batch(trainer, done, total)
        if trainer.callbacks.stopped and done < total:
            raise _Unfinished

    try:
        with trainer.undone_by_errors():
            metrics = trainer.evaluate(valid, after_batch)
            trainer.position = replace(trainer.position, evaluated=trainer.step)
            trainer.callbacks.evaluated(trainer, metrics)
    except _Unfinished:
        return
    yield metrics
    if math.isfinite(metrics.loss):
        return
    if trainer.step == 0:
        reason = (
            f"held-out loss is {metrics.loss} before the first step: the model's weights give it; "
            "try another model file or --dtype f32"
        )
    else:
        reason = f"held-out loss is {metrics.loss} after step {trainer.step}; try a lower learning rate"
    raise TrainingError.Failed(reason=reason)

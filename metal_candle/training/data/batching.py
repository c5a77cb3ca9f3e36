"""Held-out split and batches of similar length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...error import TrainingError
from ...error.expect import INTEGER, NUMBER
from ...error.takes import takes
from ..bounds import at_least
from .shapes import rounded_length
from .tokenizing import EXAMPLES, Example

WINDOW = 16
"""Batches that are sorted by length together: more saves padding, fewer mixes better."""


EPOCH = {"examples": EXAMPLES} | dict.fromkeys(
    ("batch_size", "seed", "epoch", "pad_id", "max_length", "pad_to"), INTEGER
)
"""What the functions that make an epoch's batches take."""


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length: ``inputs[b, t]`` predicts ``targets[b, t]`` where
    ``mask[b, t]``; padding is never trained on. Shapes (batch, time), int32, int32 and bool.

    Where several rows are packed into one, ``segments`` numbers the row a token belongs to, 0 for padding, and
    ``positions`` its place there; (batch, time), int32."""

    inputs: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    segments: npt.NDArray[np.int32] | None = None
    positions: npt.NDArray[np.int32] | None = None

    @property
    def trained_tokens(self) -> int:
        """How many positions are trained on."""
        return int(self.mask.sum())


@takes(examples=EXAMPLES, fraction=NUMBER, seed=INTEGER)
def split(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Hold out ``fraction`` of the examples, at least one: (train, held out), the same for the same seed.

    Both keep the order of the file. A fraction of 0 holds out nothing.
    Raises ``TrainingError.InvalidConfig`` for a fraction outside 0 <= fraction < 1, or one that leaves
    nothing to train on.
    """
    at_least("split", 0, seed=seed)
    if not 0 <= fraction < 1:
        reason = f"the held-out fraction is {fraction}; takes 0 <= fraction < 1"
        raise TrainingError.InvalidConfig(reason=reason)
    held = max(1, round(len(examples) * fraction)) if fraction else 0
    if held >= len(examples):
        reason = f"holding out {fraction} of {len(examples)} rows leaves none to train on; add rows or hold out 0"
        raise TrainingError.InvalidConfig(reason=reason)
    chosen = set(np.random.default_rng(seed).permutation(len(examples))[:held].tolist())
    train = [example for i, example in enumerate(examples) if i not in chosen]
    return train, [example for i, example in enumerate(examples) if i in chosen]


@takes(examples=EXAMPLES, batch_size=INTEGER)
def batch_count(examples: Sequence[Example], batch_size: int) -> int:
    """How many batches one epoch has. Raises ``TrainingError.InvalidConfig`` for a batch size below 1."""
    at_least("batch_count", 1, batch_size=batch_size)
    return math.ceil(len(examples) / batch_size)


@takes(**EPOCH)
def batches(
    examples: Sequence[Example],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    pad_id: int,
    max_length: int,
    pad_to: int = 16,
) -> Iterator[Batch]:
    """One epoch: every example once, in an order that depends on ``seed`` and ``epoch`` alone.

    The examples are shuffled, sorted by length within windows of ``WINDOW`` batches, and the batches
    shuffled. The time dimension is rounded up to a multiple of ``pad_to``, longer ones to coarser multiples,
    so that few shapes occur (see ``shapes``), but not beyond ``max_length``. The last batch formed holds what
    is left and may be smaller.

    Raises ``TrainingError.InvalidConfig`` for a batch size, length or multiple below 1.
    """
    at_least("batches", 1, batch_size=batch_size, max_length=max_length, pad_to=pad_to)
    at_least("batches", 0, seed=seed, epoch=epoch)
    return (collate(rows, pad_id, max_length, pad_to) for rows in grouped(examples, batch_size, seed, epoch))


def grouped(examples: Sequence[Example], batch_size: int, seed: int, epoch: int) -> Iterator[list[Example]]:
    """The examples of each batch that ``batches`` gives."""
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(examples)).tolist()
    groups: list[list[int]] = []
    for begin in range(0, len(order), batch_size * WINDOW):
        # a stable sort: equal lengths stay shuffled
        window = sorted(order[begin : begin + batch_size * WINDOW], key=lambda i: len(examples[i].tokens))
        groups += (window[i : i + batch_size] for i in range(0, len(window), batch_size))
    for group in random.permutation(len(groups)).tolist():
        yield [examples[i] for i in groups[group]]


def padded_length(examples: Sequence[Example], max_length: int, pad_to: int = 16) -> int:
    """The time dimension of a batch of these examples."""
    return rounded_length(max(len(example.tokens) for example in examples) - 1, pad_to, max_length)


@takes(examples=EXAMPLES, pad_id=INTEGER, max_length=INTEGER, pad_to=INTEGER)
def collate(examples: Sequence[Example], pad_id: int, max_length: int, pad_to: int = 16) -> Batch:
    """Shift and pad examples of at least two tokens into one batch; see ``batches``. Raises as it, and for none."""
    at_least("collate", 1, examples=len(examples), max_length=max_length, pad_to=pad_to)
    time = padded_length(examples, max_length, pad_to)
    inputs = np.full((len(examples), time), pad_id, dtype=np.int32)
    targets = np.full((len(examples), time), pad_id, dtype=np.int32)
    mask = np.zeros((len(examples), time), dtype=np.bool_)
    for b, example in enumerate(examples):
        length = len(example.tokens) - 1
        inputs[b, :length] = example.tokens[:-1]
        targets[b, :length] = example.tokens[1:]
        mask[b, :length] = example.targets[1:]
    return Batch(inputs, targets, mask)

"""Several rows packed one behind the other into one sequence, so that hardly any padding is computed.

Where every row is shorter than a quarter of the sequence, attention goes by blocks of it, 4, 8 or 16, each of which
sees itself and the one before; else all pairs of a sequence's tokens are scored, which grows with its square, and
those of different rows hidden. SmolLM2 on a CPU with the field guide, whose rows have 78 to 143 tokens, one sequence a
batch, trained 103 tokens a second of processor time in sequences of 512 in 4 blocks (90 with all pairs) and 93 in 1024
in 8 blocks (60); without packing, in sorted batches of 4 rows, 101: with rows of similar lengths there is little
padding to save. Attention alone, forward and backward, took of 1024 tokens 0.33 times in 8 blocks and 0.53 in 4, of
512 0.6 in 4, of 256 1.1 in 2, hence no fewer than 4. ``METAL_CANDLE_DEBUG=kernel`` shows the blocks as the batch of
each attention.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...error.expect import INTEGER, list_of
from ...error.takes import takes
from ..bounds import at_least
from .batching import EPOCH, WINDOW, Batch
from .tokenizing import EXAMPLES, Example

LENGTHS = 8
"""The most lengths of sequences that occur: every other one is another shape for a compiled step."""
BLOCKS = (16, 8, 4)
"""Into so many blocks a sequence may be cut for attention; each number is another shape too."""


@takes(lengths=list_of(int, "a list of lengths"), capacity=INTEGER)
def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices into ``lengths`` in groups whose lengths sum to at most ``capacity``: best-fit decreasing.

    What is longer than ``capacity`` is a group of its own. The groups are at most 11/9 of the fewest possible, but
    for a constant (Johnson et al. 1974, https://doi.org/10.1137/0203025).
    """
    packs: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (what is left in a pack, its number), ascending
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        found = bisect_left(spaces, (lengths[i], 0))
        space, number = spaces.pop(found) if found < len(spaces) else (capacity, len(packs))
        if number == len(packs):
            packs.append([])
        packs[number].append(i)
        insort(spaces, (space - lengths[i], number))
    return packs


@takes(**EPOCH)
def packed_batches(
    examples: Sequence[Example],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    pad_id: int,
    max_length: int,
    pad_to: int = 16,
) -> Iterator[Batch]:
    """One epoch of batches of ``batch_size`` sequences of at most ``max_length`` tokens, several examples in each.

    Every example once, in an order that depends on ``seed`` and ``epoch`` alone: the examples are shuffled, packed
    within windows of about ``WINDOW`` batches, and the batches shuffled. The time dimension is rounded up to one of
    ``LENGTHS`` lengths, each a multiple of ``pad_to`` or ``max_length``. The last batch formed may be smaller.

    Raises ``TrainingError.InvalidConfig`` for a batch size, length or multiple below 1.
    """
    at_least("packed_batches", 1, batch_size=batch_size, max_length=max_length, pad_to=pad_to)
    at_least("packed_batches", 0, seed=seed, epoch=epoch)
    groups = grouped_packed(examples, batch_size, seed, epoch, max_length)
    return (collate_packed(sequences, pad_id, max_length, pad_to) for sequences in groups)


def grouped_packed(
    examples: Sequence[Example], batch_size: int, seed: int, epoch: int, max_length: int
) -> Iterator[list[list[Example]]]:
    """The examples of each sequence of each batch that ``packed_batches`` gives."""
    for group in _groups(examples, batch_size, np.random.default_rng((seed, epoch)), max_length):
        yield [[examples[i] for i in sequence] for sequence in group]


@takes(examples=EXAMPLES, **dict.fromkeys(("batch_size", "seed", "epoch", "max_length"), INTEGER))
def packed_batch_count(examples: Sequence[Example], batch_size: int, *, seed: int, epoch: int, max_length: int) -> int:
    """How many batches ``packed_batches`` gives: epochs may differ by some, as each packs other neighbours.

    Raises as ``packed_batches``.
    """
    at_least("packed_batch_count", 1, batch_size=batch_size, max_length=max_length)
    at_least("packed_batch_count", 0, seed=seed, epoch=epoch)
    return len(_groups(examples, batch_size, np.random.default_rng((seed, epoch)), max_length))


def blocks_of(positions: npt.NDArray[np.int32]) -> int:
    """Into how many blocks attention cuts sequences with these places ``(b, t)``: no row is longer than one.

    1 where it scores all pairs, which for two blocks is faster.
    """
    time, longest = positions.shape[1], int(positions.max()) + 1
    return next((blocks for blocks in BLOCKS if time % blocks == 0 and longest * blocks <= time), 1)


def _groups(
    examples: Sequence[Example], batch_size: int, random: np.random.Generator, max_length: int
) -> list[list[list[int]]]:
    """The examples of each sequence of each batch."""
    order = random.permutation(len(examples)).tolist()
    lengths = [len(examples[i].tokens) - 1 for i in order]
    sequences: list[list[int]] = []
    begin = filled = 0
    for end, length in enumerate(lengths, start=1):
        filled += length
        if filled >= WINDOW * batch_size * max_length or end == len(order):
            sequences += ([order[begin + i] for i in found] for found in pack(lengths[begin:end], max_length))
            begin, filled = end, 0
    groups = [sequences[i : i + batch_size] for i in range(0, len(sequences), batch_size)]
    return [groups[i] for i in random.permutation(len(groups)).tolist()]


def packed_length(sequences: Sequence[Sequence[Example]], max_length: int, pad_to: int = 16) -> int:
    """The time dimension of a batch of these sequences."""
    longest = max(sum(len(example.tokens) - 1 for example in sequence) for sequence in sequences)
    step = math.ceil(max_length / LENGTHS / pad_to) * pad_to
    return max(longest, min(math.ceil(longest / step) * step, max_length))


def collate_packed(sequences: Sequence[Sequence[Example]], pad_id: int, max_length: int, pad_to: int = 16) -> Batch:
    """Shift the examples, each of at least two tokens, and put those of a sequence one behind the other."""
    time = packed_length(sequences, max_length, pad_to)
    inputs, targets = (np.full((len(sequences), time), pad_id, dtype=np.int32) for _ in range(2))
    segments, positions = (np.zeros((len(sequences), time), dtype=np.int32) for _ in range(2))
    mask = np.zeros((len(sequences), time), dtype=np.bool_)
    for b, sequence in enumerate(sequences):
        begin = 0
        for number, example in enumerate(sequence, start=1):
            length = len(example.tokens) - 1
            part = (b, slice(begin, begin + length))
            inputs[part], targets[part] = example.tokens[:-1], example.tokens[1:]
            mask[part] = example.targets[1:]
            segments[part], positions[part] = number, np.arange(length)
            begin += length
    return Batch(inputs, targets, mask, segments, positions)

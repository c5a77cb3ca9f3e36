"""Showing what a data set trains on: one example with its trained tokens marked, and a set's lengths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...error.expect import a
from ...error.takes import takes
from ..bounds import at_least
from .tokenizing import EXAMPLES, TOKENIZER, Example, Tokenizer

if TYPE_CHECKING:
    import rich.text

PERCENTILES = (50, 90, 99)
BINS = 10
BAR = 40
"""Width of the histogram's longest bar, in characters."""


@takes(example=a(Example), tokenizer=TOKENIZER)
def render_inspection(example: Example, tokenizer: Tokenizer) -> rich.text.Text:
    """The example's text for a terminal, what is trained on in colour, with a heading of counts."""
    from rich.text import Text

    shown = Text(_heading(example) + "\n", style="bold")
    for trained, text in _runs(example, tokenizer):
        shown.append(text, style="black on green" if trained else "not bold dim")
    return shown


@takes(example=a(Example), tokenizer=TOKENIZER)
def render_inspection_plain(example: Example, tokenizer: Tokenizer) -> str:
    """The same without colour: what is trained on stands in ``[[…]]``."""
    runs = (f"[[{text}]]" if trained else text for trained, text in _runs(example, tokenizer))
    return _heading(example) + "\n" + "".join(runs)


def _heading(example: Example) -> str:
    return f"{example.path}:{example.line}: {len(example.tokens)} tokens, {example.trained_tokens} trained on"


def _runs(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[bool, str]]:
    """Neighbouring tokens of the same kind decoded together: a character may take several tokens."""
    pairs = zip(example.targets, example.tokens)
    for trained, run in itertools.groupby(pairs, key=lambda pair: pair[0]):
        yield trained, tokenizer.decode([token for _, token in run], skip_special_tokens=False)


@dataclass(frozen=True)
class Summary:
    """Counts of a set: rows, tokens, trained tokens, and the rows' lengths in tokens."""

    rows: int
    tokens: int
    trained_tokens: int
    shortest: int
    percentiles: tuple[tuple[int, int], ...]
    """(percent, length): that part of the rows is at most so long."""
    longest: int
    histogram: tuple[tuple[int, int, int], ...]
    """(from, to, rows), both lengths included."""


@takes(examples=EXAMPLES)
def summarize(examples: Sequence[Example]) -> Summary:
    """Count a set. Raises ``TrainingError.InvalidConfig`` for one without examples."""
    at_least("summarize", 1, examples=len(examples))
    lengths = np.array([len(example.tokens) for example in examples])
    width = max(1, -(-(int(lengths.max()) - int(lengths.min()) + 1) // BINS))
    begins = range(int(lengths.min()), int(lengths.max()) + 1, width)
    percentiles = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    return Summary(
        rows=len(examples),
        tokens=int(lengths.sum()),
        trained_tokens=sum(example.trained_tokens for example in examples),
        shortest=int(lengths.min()),
        percentiles=tuple((percent, int(length)) for percent, length in zip(PERCENTILES, percentiles)),
        longest=int(lengths.max()),
        histogram=tuple(
            (begin, begin + width - 1, int(((lengths >= begin) & (lengths < begin + width)).sum())) for begin in begins
        ),
    )


@takes(summary=a(Summary))
def render_summary(summary: Summary) -> str:
    """The summary as lines of plain text: counts, percentiles, a bar per range of lengths."""
    part = summary.trained_tokens / summary.tokens
    percentiles = ", ".join(f"{percent}% ≤ {length}" for percent, length in summary.percentiles)
    lines = [
        f"{summary.rows} rows, {summary.tokens} tokens, {summary.trained_tokens} trained on ({part:.0%})",
        f"tokens per row: {summary.shortest} to {summary.longest}; {percentiles}",
    ]
    most = max(count for _, _, count in summary.histogram)
    digits = len(str(summary.longest))
    for begin, end, count in summary.histogram:
        bar = "█" * max(round(BAR * count / most), 1 if count else 0)
        lines.append(f"{begin:>{digits}}–{min(end, summary.longest):<{digits}} {bar} {count}")
    return "\n".join(lines)

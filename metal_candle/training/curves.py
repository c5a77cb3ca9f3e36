"""The loss of a run as a picture and as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from os import PathLike
from typing import Any

from ..error.expect import INTEGER, LIST, NUMBER, PATH, TEXT, Kind, expect, list_of, listed
from ..error.takes import takes
from ..files import write_atomically
from .bounds import at_least
from .metrics import HELD_OUT, TRAINING, Record

RECORDS = list_of(Mapping, "a list of records, as read_metrics gives")


@takes(name=TEXT)
def loss_series(records: Iterable[Record], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one measured loss, ``loss`` or ``held_out_loss``, where it is a number."""
    every = listed("loss_series", records, RECORDS.takes)
    expect("loss_series", every, RECORDS, "records")
    points = [(record["step"], record[name]) for record in every if _measured(record, name)]
    return [step for step, _ in points], [value for _, value in points]


def _measured(record: Record, name: str) -> bool:
    value: Any = record.get(name)
    return INTEGER.holds(record.get("step")) and NUMBER.holds(value) and math.isfinite(value)


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean over a window centred on each value, a tenth of the curve wide and narrower towards its ends:
    it neither lags behind nor moves the first and last value."""
    last = len(values) - 1
    reaches = [min(len(values) // 20, i, last - i) for i in range(len(values))]
    windows = [values[i - reach : i + reach + 1] for i, reach in enumerate(reaches)]
    return [sum(window) / len(window) for window in windows]


@takes(path=PATH, title=TEXT)
def plot_loss(records: Iterable[Record], path: str | PathLike[str], title: str = "Loss") -> None:
    """Draw training and held-out loss over the steps into a PNG, whole or not at all.

    Raises ``CheckpointError.SaveFailed`` when it cannot be written.
    """
    # matplotlib takes most of a second to import; the figure is made without pyplot's global state
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    records = listed("plot_loss", records, RECORDS.takes)
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, values = loss_series(records, TRAINING)
    if values:
        axes.plot(steps, values, color="#9db8d9", linewidth=1, label="training, each step")
        axes.plot(steps, smoothed(values), color="#1f5fa8", linewidth=2, label="training, smoothed")
    steps, values = loss_series(records, HELD_OUT)
    if values:
        axes.plot(steps, values, color="#d1591f", linewidth=2, marker="o", markersize=5, zorder=3, label="held out")
        axes.annotate(
            f"{values[-1]:.3f}",
            (steps[-1], values[-1]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="right",
            color="#d1591f",
        )
    axes.set(title=title, xlabel="step", ylabel="loss (nats per trained token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.has_data():
        axes.legend(frameon=False)
    with write_atomically(path) as beside:
        figure.savefig(beside, format="png")


def _are_numbers(values: object) -> bool:
    return LIST.holds(values) and all(map(NUMBER.holds, values))  # type: ignore[call-overload]


_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a Braille cell's dots, by row and column (Unicode block U+2800)."""


@takes(values=Kind("a list of numbers", _are_numbers), width=INTEGER, height=INTEGER)
def render_curve(values: Sequence[float], width: int = 60, height: int = 8) -> str:
    """A curve as text: ``height`` lines of Braille dots, ``width`` cells wide, with the range at the left.

    Values that are not finite leave a gap. More values than dots are averaged; fewer are joined by lines.
    Raises ``TrainingError.InvalidConfig`` for a width or height below 1.
    """
    at_least("render_curve", 1, width=width, height=height)
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    columns, rows = width * 2, height * 4
    cells = [[0] * width for _ in range(height)]
    previous: int | None = None
    for x, value in enumerate(_resampled(values, columns)):
        if value is None:
            previous = None
            continue
        y = round((high - value) / (high - low) * (rows - 1)) if high > low else rows // 2
        # join to the column before, so that a steep fall is a line and not scattered dots
        start = y if previous is None else previous + (y > previous) - (y < previous)
        for dot in range(min(start, y), max(start, y) + 1) if previous != y else (y,):
            cells[dot // 4][x // 2] |= _DOTS[dot % 4][x % 2]
        previous = y
    labels = [""] * height
    labels[-1], labels[0] = f"{low:.3g}", f"{high:.3g}"
    margin = max(len(label) for label in labels)
    lines = ("".join(chr(0x2800 + cell) for cell in row) for row in cells)
    return "\n".join(f"{label:>{margin}} ┤{line}" for label, line in zip(labels, lines))


def _resampled(values: Sequence[float], columns: int) -> list[float | None]:
    """One value per column: the mean of those that fall on it, or a point on the line between two."""
    count = len(values)
    if count >= columns:
        bounds = [i * count // columns for i in range(columns + 1)]
        groups = (values[begin:end] for begin, end in pairwise(bounds))
        return [_mean([value for value in group if math.isfinite(value)]) for group in groups]
    result: list[float | None] = []
    for x in range(columns):
        position = x * (count - 1) / (columns - 1) if columns > 1 else 0.0
        left = min(int(position), count - 1)
        right = min(left + 1, count - 1)
        value = values[left] + (values[right] - values[left]) * (position - left) if position > left else values[left]
        result.append(value if math.isfinite(value) else None)
    return result


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None

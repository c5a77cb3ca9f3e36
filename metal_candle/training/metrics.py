"""The record of a run: metrics as JSON Lines, the loss as a picture and as text."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..error import ArgumentTypeError, CheckpointError, Error
from ..error.expect import listed
from ..files import parse_json_object, write_atomically
from .arguments import (
    DICT,
    FLAG,
    FUNCTION,
    INTEGER,
    LIST,
    NUMBER,
    PATH,
    TEXT,
    Kind,
    at_least,
    expect,
    list_of,
    optional,
    takes,
)
from .callbacks import TrainingCallback
from .events import EvalMetrics, StepMetrics
from .position import Position

Record = Mapping[str, Any]

RECORDS = list_of(Mapping, "a list of records, as read_metrics gives")
TRAINING = "loss"
HELD_OUT = "held_out_loss"


class MetricsLog(TrainingCallback):
    """Appends one JSON object per line to a file, each written through at once.

    A record has ``step`` and, where they were measured, ``loss`` (training) and ``held_out_loss``. A number
    that is not finite is written as ``null``, since JSON has none. As a callback it writes every update and
    evaluation, with what ``extra`` gives at that moment. Opened with ``append`` for a run that is resumed, it first
    drops what was written after the state was saved: each step is there once.
    Raises ``CheckpointError.SaveFailed`` when the file cannot be opened or written.
    """

    @takes(path=PATH, append=FLAG, extra=optional(FUNCTION))
    def __init__(
        self,
        path: str | PathLike[str],
        append: bool = False,
        extra: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """Start the file anew, or go on with it (``append``)."""
        self.path = Path(path)
        self._extra = extra
        self._file: IO[str] = self._opened("a" if append else "w")

    @takes(record=DICT)
    def write(self, record: Record) -> None:
        """Append one record. Raises ``ArgumentTypeError`` for values that JSON does not know."""
        if self._file.closed:
            raise CheckpointError.SaveFailed(reason=f"{self.path}: the log is closed")
        try:
            line = json.dumps({name: _finite(value) for name, value in record.items()}, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(f"MetricsLog.write: {error}; takes what JSON can hold") from error
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the file; a closed log takes no more records."""
        try:
            self._sync()
            self._file.close()
        except OSError as error:  # what could not be written before cannot be now
            raise self._failed(error) from error

    def on_resume(self, trainer: Any, state: Mapping[str, Any]) -> None:
        """Cut off what was written after the state was saved, a line cut short included."""
        self._reopen()
        end, last = 0, 0
        try:
            with self.path.open("rb") as file:
                for line in file:
                    step = _belongs(line, trainer.position)
                    if step is None:
                        break
                    end, last = end + len(line), max(last, step)
            self._file.truncate(end)
        except OSError as error:
            raise self._failed(error) from error
        if last < trainer.step:
            missing = f"{last + 1} to {trainer.step}" if last + 1 < trainer.step else str(trainer.step)
            warnings.warn(f"{self.path}: no record of step {missing}, which the resumed run made", stacklevel=2)

    def on_start(self, trainer: Any, total_steps: int) -> bool | None:
        """Open the file again for a run that goes on."""
        self._reopen()
        return None

    def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
        """Write an update."""
        self.write({**asdict(metrics), **self._more()})
        return None

    def on_evaluate(self, trainer: Any, metrics: EvalMetrics) -> bool | None:
        """Write an evaluation."""
        record = asdict(metrics)
        loss = record.pop("loss")
        self.write({**record, HELD_OUT: loss, **self._more()})
        return None

    def state(self) -> dict[str, Any]:
        """Nothing: the step says where to cut. What was written is on the disk before the state is."""
        self._sync()
        return {}

    def on_end(self, trainer: Any, error: BaseException | None) -> None:
        """Close the file."""
        self.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _sync(self) -> None:
        if not self._file.closed:
            with suppress(OSError):  # a pipe, say
                os.fsync(self._file.fileno())

    def _more(self) -> Mapping[str, Any]:
        more = {} if self._extra is None else self._extra()
        expect("MetricsLog", "from extra", more, DICT)
        return more

    def _reopen(self) -> None:
        if self._file.closed:
            self._file = self._opened("a")

    def _opened(self, mode: str) -> IO[str]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self.path.open(mode, encoding="utf-8")
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> CheckpointError:
        return CheckpointError.SaveFailed(reason=f"{self.path}: {error.strerror or error}")


def _belongs(line: bytes, position: Position) -> int | None:
    """The update that a line is about, 0 for another record; ``None`` if it came after the position, or is broken."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
        step = int(record.get("step", 0))
    except (ValueError, AttributeError, TypeError):
        return None
    if HELD_OUT in record:
        return 0 if step <= position.evaluated else None
    return step if step <= position.step else None


def _broken(reason: str) -> Error:
    return CheckpointError.LoadFailed(reason=reason)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@takes(path=PATH)
def read_metrics(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """The records of a metrics file. A last line that a crash cut short is left out.

    Raises ``CheckpointError.LoadFailed`` for a file that cannot be read or a broken line before the last.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError.LoadFailed(reason=f"{path}: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(parse_json_object(line, f"{path}:{number}", _broken))
        except CheckpointError:
            if number == len(lines):  # no line feed after it: the write did not finish
                break
            raise
    return records


@takes(name=TEXT)
def loss_series(records: Iterable[Record], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one measured loss, ``loss`` or ``held_out_loss``, where it is a number."""
    every = listed("loss_series", records, RECORDS.takes)
    expect("loss_series", "records", every, RECORDS)
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

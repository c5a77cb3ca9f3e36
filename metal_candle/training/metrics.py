"""The metrics of a run as JSON Lines: written while it trains, and read back."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..error import CheckpointError, Error
from ..error.expect import DICT, FLAG, FUNCTION, PATH, expect, optional
from ..error.takes import takes
from ..error.text import shown
from ..files import parse_json_object, read_text
from .callbacks import TrainingCallback
from .events import EvalMetrics, StepMetrics
from .json_values import json_value
from .position import Position

Record = Mapping[str, Any]

TRAINING, HELD_OUT = "loss", "held_out_loss"
"""The fields of a record that hold a loss."""


class MetricsLog(TrainingCallback):
    """Writes metrics as JSON Lines: one object per line, flushed at once.

    A record has ``step`` and, where they were measured, ``loss`` (training) and ``held_out_loss``. A number
    that is not finite is written as ``null``, since JSON has none. As a callback it writes every update and
    evaluation, with the fields that ``extra()`` returns. Opened with ``append`` for a run that is resumed, it first
    drops what was written after the state was saved, so that each step occurs once.
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
        values = {name: _finite(value) for name, value in json_value(record, "MetricsLog.write: record").items()}
        line = json.dumps(values, ensure_ascii=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the file; a closed log takes no more records. Raises ``CheckpointError.SaveFailed``."""
        try:
            self._sync()
            self._file.close()
        except OSError as error:  # what could not be written before cannot be now
            raise self._failed(error) from error

    def on_resume(self, trainer: Any, state: Mapping[str, Any]) -> None:
        """Cut off what was written after the state was saved, a line cut short included.

        Warns of steps without a record. Raises ``CheckpointError.SaveFailed``.
        """
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
        expect("MetricsLog", more, DICT, "from extra")
        return more

    def _reopen(self) -> None:
        if self._file.closed:
            self._file = self._opened("a")

    def _opened(self, mode: str) -> IO[str]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self.path.open(mode, encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: no file can have this name
            raise self._failed(error) from error

    def _failed(self, error: OSError | ValueError) -> CheckpointError:
        reason = getattr(error, "strerror", None) or error
        return CheckpointError.SaveFailed(reason=f"{shown(self.path, 300)}: {reason}")


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
    lines = read_text(path, _broken).split("\n")
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

"""How a training run is shown: a bar with loss, speed, memory and time left, or plain lines elsewhere."""

from __future__ import annotations

import resource
import sys
import time
from types import TracebackType
from typing import Any

import mlx.core as mx

from ..device import Device
from ..training.trainer import EvalMetrics, StepMetrics


def peak_memory() -> int:
    """The most bytes held so far: MLX's own on a GPU, the whole process on the CPU."""
    if not Device.default().is_cpu():
        return int(mx.get_peak_memory())
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def clock(seconds: float) -> str:
    """``1:05`` for 65 seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class RunDisplay:
    """Shows a run of ``total`` steps. A context manager; ``show`` takes what the trainer gives."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = time.perf_counter()
        self._tokens = 0
        self._busy = 0.0
        self._smooth: float | None = None
        self._bar: Any = None

    def __enter__(self) -> RunDisplay:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self._total, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, event: StepMetrics | EvalMetrics) -> None:
        """Show a step or an evaluation."""
        if isinstance(event, EvalMetrics):
            self._say(f"held-out loss {event.loss:.4f} after {event.step} steps")
            return
        self._tokens += event.tokens
        self._busy += event.seconds
        self._smooth = event.loss if self._smooth is None else 0.8 * self._smooth + 0.2 * event.loss
        left = self._busy / event.step * (self._total - event.step)
        end = f"{clock(left)} left" if event.step < self._total else "finishing"
        numbers = (
            f"loss {self._smooth:.3f}  {self._tokens / self._busy:.0f} tok/s  {peak_memory() / 2**30:.2f} GB  {end}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=event.step, numbers=numbers)
        elif event.step % max(self._total // 20, 1) == 0 or event.step in (1, self._total):
            print(f"step {event.step}/{self._total}  {numbers}", flush=True)

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, flush=True)

"""How a training run is shown: a bar with loss, speed, memory and time left, or plain lines elsewhere."""

from __future__ import annotations

import resource
import sys
from typing import Any

import mlx.core as mx

from ..device import Device
from .callbacks import TrainingCallback
from .events import EvalMetrics, StepMetrics


def peak_memory() -> int:
    """The most bytes held so far: MLX's own on a GPU, the whole process on the CPU."""
    return process_memory() if Device.default().is_cpu() else int(mx.get_peak_memory())


def process_memory() -> int:
    """The most bytes of main memory that the process has held so far."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def mebibytes(size: int) -> str:
    """``1,024.0 MiB`` for 2^30 bytes."""
    return f"{size / 2**20:,.1f} MiB"


def clock(seconds: float) -> str:
    """``1:05`` for 65 seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class ProgressBar(TrainingCallback):
    """Shows a run on the standard output: a bar on a terminal, elsewhere a line for every twentieth of it."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._begin(0, 0)

    def _begin(self, total: int, done: int) -> None:
        self._total, self._first = total, done
        self._tokens = 0
        self._busy = 0.0
        self._smooth: float | None = None

    def on_start(self, trainer: Any, total_steps: int) -> bool | None:
        """Begin at the trainer's step."""
        self._begin(total_steps, trainer.step)
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=total_steps, completed=trainer.step, numbers="")
        return None

    def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
        """Show an update."""
        self._tokens += metrics.tokens
        self._busy += metrics.seconds
        self._smooth = metrics.loss if self._smooth is None else 0.8 * self._smooth + 0.2 * metrics.loss
        left = self._busy / (metrics.step - self._first) * (self._total - metrics.step)
        end = f"{clock(left)} left" if metrics.step < self._total else "finishing"
        speed = f"{self._tokens / self._busy:.0f} tok/s  " if self._busy and self._tokens else ""
        numbers = f"loss {self._smooth:.3f}  {speed}{peak_memory() / 2**30:.2f} GiB  {end}"
        if self._bar is not None:
            self._bar.update(self._task, completed=metrics.step, numbers=numbers)
        elif metrics.step % max(self._total // 20, 1) == 0 or metrics.step in (self._first + 1, self._total):
            print(f"step {metrics.step}/{self._total}  {numbers}", flush=True)
        return None

    def on_evaluate(self, trainer: Any, metrics: EvalMetrics) -> bool | None:
        """Show a held-out loss."""
        line = f"held-out loss {metrics.loss:.4f} after {metrics.step} steps"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, flush=True)
        return None

    def on_end(self, trainer: Any, error: BaseException | None) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

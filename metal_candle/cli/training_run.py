"""A training run from the command line: shown, kept on disk, stopped by Ctrl-C after a whole step."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ..error import TrainingError


class Outcome:
    """How a run ended: its records, and what stopped it early."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.interrupted = False
        self.saved = False
        self.error = ""


class StopRequest:
    """Ctrl-C during a run: the first asks to stop after the step, the second stops at once.

    While the adapter is saved, and after it, there is nothing left to interrupt.
    """

    def __init__(self) -> None:
        self.asked = self.ended = False

    def __enter__(self) -> StopRequest:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.ended:
            return
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        if not self.asked:
            signal.signal(signal.SIGINT, self._previous)


def run(trainer: Any, train: Any, valid: Any, output: Path, base: str, save_every: int) -> Outcome:
    """Train, show it, and keep adapter and metrics on disk."""
    from dataclasses import asdict

    from ..training.metrics import MetricsLog
    from ..training.trainer import EvalMetrics
    from .progress import RunDisplay, peak_memory

    outcome = Outcome()
    with (
        StopRequest() as stop,
        MetricsLog(output / "metrics.jsonl") as log,
        RunDisplay(trainer.total_steps(train)) as display,
    ):
        try:
            for event in trainer.run(train, valid):
                record = asdict(event)
                if isinstance(event, EvalMetrics):
                    record["held_out_loss"] = record.pop("loss")
                record["peak_memory_bytes"] = peak_memory()
                outcome.records.append(record)
                log.write(record)
                display.show(event)
                due = save_every and event.step and event.step % save_every == 0
                if due and not isinstance(event, EvalMetrics):
                    trainer.adapter.save(output, base)
                if stop.asked:
                    outcome.interrupted = True
                    break
            stop.ended = True
        except TrainingError.Failed as error:
            stop.ended = True
            outcome.error = str(getattr(error, "reason", error))
        except KeyboardInterrupt:  # the second Ctrl-C: the adapter has the weights of the last whole step
            stop.ended = outcome.interrupted = True
        if trainer.step or not outcome.error:
            trainer.adapter.save(output, base)
            outcome.saved = True
    return outcome


def resume_command(output: Path) -> str:
    """The command line that goes on from what was saved."""
    arguments = sys.argv[1:]
    for flag in ("--resume", "--output"):
        while flag in arguments:
            at = arguments.index(flag)
            del arguments[at : at + 2]
    kept = [
        argument
        for argument in arguments
        if not argument.startswith(("--resume=", "--output=")) and argument != "--overwrite"
    ]
    return shlex.join(["metal-candle", *kept, "--output", str(output), "--resume", str(output)])


def report(outcome: Outcome, output: Path, question: str, before: str, after: str, started: float) -> None:
    """The loss as a curve and a picture, the answers before and after, where everything is."""
    from ..training.metrics import loss_series, plot_loss, render_curve
    from .progress import clock, peak_memory

    _, losses = loss_series(outcome.records, "loss")
    _, held_out = loss_series(outcome.records, "held_out_loss")
    if losses:
        plot_loss(outcome.records, output / "loss.png")
        print(f"\ntraining loss\n{render_curve(losses)}")
    done = not outcome.interrupted and not outcome.error
    if held_out:
        print(f"held-out loss  {held_out[0]:.4f} before" + (f", {held_out[-1]:.4f} after" if done else ""))
    if after:
        print(f"\n> {question}\n\nbefore:\n{before}\n\nafter:\n{after}\n")
    seconds = time.perf_counter() - started
    if outcome.saved:
        print(f"adapter in {output}/ after {clock(seconds)}, peak memory {peak_memory() / 2**30:.2f} GB")
    if done:
        print(f'try it:  metal-candle generate --adapter {output} "{question or "Hello"}"', flush=True)

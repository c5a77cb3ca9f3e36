"""A training run from the command line: shown, kept on disk, stopped by Ctrl-C after a whole step."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def stop_request() -> Iterator[list[bool]]:
    """A list that is filled at the first Ctrl-C, so that a step is never torn; the second one interrupts."""
    asked: list[bool] = []

    def handle(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)


def run(trainer: Any, train: Any, valid: Any, output: Path, base: str, save_every: int) -> Outcome:
    """Train, show it, and keep adapter and metrics on disk."""
    from dataclasses import asdict

    from ..training.metrics import MetricsLog
    from ..training.trainer import EvalMetrics
    from .progress import RunDisplay, peak_memory

    outcome = Outcome()
    with (
        stop_request() as asked,
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
                if asked:
                    outcome.interrupted = True
                    break
        except TrainingError.Failed as error:
            outcome.error = str(getattr(error, "reason", error))
        except KeyboardInterrupt:  # the second Ctrl-C: the adapter has the weights of the last whole step
            outcome.interrupted = True
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

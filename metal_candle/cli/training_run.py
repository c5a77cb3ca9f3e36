"""A training run from the command line: shown, kept on disk, stopped by Ctrl-C after a whole step."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..error import CheckpointError, TrainingError
from ..files import missing_folders, remove_empty
from ..training.callbacks import Callbacks, TrainingCallback

if TYPE_CHECKING:
    from ..training.saving import SaveState
    from ..training.trainer import AdapterTrainer

METRICS = "metrics.jsonl"


class Outcome:
    """How a run ended: its records, what stopped it early, the step of the state that is on disk, and the most bytes
    that MLX's arrays took meanwhile."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.interrupted = False
        self.saved: int | None = None
        self.arrays = 0
        self.error: TrainingError | CheckpointError | None = None


class StopRequest(TrainingCallback):
    """Ctrl-C during a run: the first asks to stop after the step or batch of an evaluation, the second stops at once.

    While the state is saved at the end, and after it, there is nothing left to interrupt. Give it before what saves.
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
            self.ended = True
            raise KeyboardInterrupt
        self.asked = True
        print(
            "\nstopping after this step or batch of an evaluation; once more to stop at once",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(self, *error: object) -> None:
        if not self.asked:
            signal.signal(signal.SIGINT, self._previous)

    def on_step(self, trainer: Any, metrics: Any) -> bool | None:
        """Stop if it was asked for."""
        return not self.asked

    def on_evaluation_batch(self, trainer: Any, done: int, total: int) -> bool | None:
        """Stop if it was asked for."""
        return not self.asked

    def on_evaluate(self, trainer: Any, metrics: Any) -> bool | None:
        """Stop if it was asked for."""
        return not self.asked

    def on_end(self, trainer: Any, error: BaseException | None) -> None:
        """Nothing is interrupted any more."""
        self.ended = True


def run(
    make: Callable[[list[TrainingCallback]], AdapterTrainer],
    train: Any,
    valid: Any,
    output: Path,
    *,
    base: str,
    save_every: int,
    flags: dict[str, Any],
    resumed: Path | None = None,
    announce: Callable[[AdapterTrainer], None],
) -> tuple[AdapterTrainer, Outcome]:
    """Train, show it, and keep state, adapter and metrics on disk. ``resumed`` is the folder of a resumed run.

    Returns the trainer that ``make`` made, and how the run ended. Where it ends before anything was saved, it leaves
    neither files nor folders of its own.
    """
    from ..training.saving import SaveState
    from ..training.state import STATE
    from .resuming import NOTE

    trainer = make([])
    events = trainer.run(train, valid)  # which refuses other data than a resumed run's, before anything is said
    announce(trainer)
    missing = missing_folders(output)
    save = SaveState(output / STATE, save_every, adapter=output, base_model=base, notes={NOTE: flags})
    try:
        output.mkdir(parents=True, exist_ok=True)
        # From here on what was in the folder is replaced.
        if resumed is None:
            (output / STATE).unlink(missing_ok=True)  # one of a run that is replaced has nothing to do with the new log
        elif resumed.resolve() != output.resolve() and (resumed / METRICS).is_file():
            shutil.copyfile(resumed / METRICS, output / METRICS)
        return trainer, _gone_through(trainer, events, output / METRICS, save, append=resumed is not None)
    finally:
        if not (output / STATE).exists():
            (output / METRICS).unlink(missing_ok=True)
            remove_empty(missing)


def _gone_through(trainer: AdapterTrainer, events: Any, metrics: Path, save: SaveState, append: bool) -> Outcome:
    import mlx.core as mx

    from ..training.metrics import MetricsLog, read_metrics
    from ..training.progress import ProgressBar, peak_memory

    outcome = Outcome()
    mx.reset_peak_memory()  # loading the model may have taken more
    with StopRequest() as stop:
        log = MetricsLog(metrics, append=append, extra=lambda: {"peak_memory_bytes": peak_memory()})
        trainer.callbacks = Callbacks([log, ProgressBar(), stop, save])
        try:
            for _ in events:
                pass
        except (TrainingError.Failed, TrainingError.Gradient, CheckpointError.SaveFailed) as error:
            outcome.error = error
        except KeyboardInterrupt:  # the second Ctrl-C: what is saved is the last whole step
            pass
        stop.ended = True
        outcome.interrupted = stop.asked and outcome.error is None
        outcome.saved, outcome.arrays = save.saved_step, mx.get_peak_memory()
    if outcome.error is None:
        outcome.records = read_metrics(metrics)
    return outcome


def resume_command(output: Path) -> str:
    """The command line that goes on from what was saved."""
    return shlex.join(["metal-candle", "finetune", "--resume", str(output)])


def what_to_do(outcome: Outcome, output: Path) -> str:
    """What an error's line ends with: what is on disk, and how to go on from it."""
    if outcome.saved is None:
        return ""
    kept = f"; what was saved after step {outcome.saved} is unchanged in {output}"
    if isinstance(outcome.error, CheckpointError):
        return f"{kept}: go on with {resume_command(output)}"
    return f"{kept}: --init-adapter {output} starts a new run from it" if outcome.saved else kept


def report(outcome: Outcome, output: Path, question: str, before: str, after: str, started: float) -> None:
    """The loss as a curve and a picture, the answers before and after, where everything is."""
    from ..training.curves import loss_series, plot_loss, render_curve
    from ..training.progress import clock, mebibytes, process_memory

    if outcome.error is not None:
        return
    _, losses = loss_series(outcome.records, "loss")
    _, held_out = loss_series(outcome.records, "held_out_loss")
    if losses:
        plot_loss(outcome.records, output / "loss.png")
        print(f"\ntraining loss\n{render_curve(losses)}")
    if held_out:
        print(
            f"held-out loss  {held_out[0]:.4f} before" + ("" if outcome.interrupted else f", {held_out[-1]:.4f} after")
        )
    if after:
        print(f"\n> {question}\n\nbefore:\n{before}\n\nafter:\n{after}\n")
    seconds = time.perf_counter() - started
    # Before the first step there is no adapter to be written.
    print(f"{'adapter' if outcome.saved else 'state of the run'} in {output}/ after {clock(seconds)}")
    arrays, process = mebibytes(outcome.arrays), mebibytes(process_memory())
    print(
        f"peak memory: {arrays} in MLX's arrays while training, which --plan estimates; {process} in the whole process"
    )
    if not outcome.interrupted:
        print(f'try it:  metal-candle generate --adapter {output} "{question or "Hello"}"', flush=True)

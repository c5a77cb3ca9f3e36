"""Callbacks: objects that are notified of a run's events, and may stop it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..error import ArgumentTypeError, TrainingError
from ..error.expect import INTEGER, NUMBER, listed
from ..error.takes import takes
from ..error.text import described
from .bounds import at_least
from .events import EvalMetrics, StepMetrics


class TrainingCallback:
    """Base class of callbacks: a run calls each method at its event, for one callback after the other as given.

    A method that returns ``False`` stops the run after the current step; any other result lets it go on. All callbacks
    are notified of an event, also where an earlier one stops the run at it. ``trainer`` is the running trainer:
    ``trainer.step`` is the number of updates made.

    An exception ends the run and reaches its caller. When ``on_step`` raises, ``AdapterTrainer`` takes the step back:
    a step and what was written about it exist together or not at all.
    """

    def on_start(self, trainer: Any, total_steps: int) -> bool | None:
        """Before the first evaluation and step; ``total_steps`` counts those made before a resume too."""

    def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
        """After an update."""

    def on_evaluation_batch(self, trainer: Any, done: int, total: int) -> bool | None:
        """After a batch of an evaluation, the first of which comes before any step: ``done`` of ``total``.

        ``False`` leaves the evaluation unfinished: ``on_evaluate`` does not follow, and a resumed run begins with it.
        """

    def on_evaluate(self, trainer: Any, metrics: EvalMetrics) -> bool | None:
        """After the held-out loss was measured."""

    def on_step_end(self, trainer: Any) -> bool | None:
        """After an update and, where it is due, the evaluation that follows: the moment to save."""

    def on_save(self, trainer: Any, path: Path) -> bool | None:
        """After the state was written to ``path``."""

    def on_end(self, trainer: Any, error: BaseException | None) -> None:
        """After the last step, however the run ended; ``error`` is what ended it early, an interrupt included."""

    def state(self) -> dict[str, Any]:
        """What has to survive a resume, as values that JSON can hold. Called right before the state is written."""
        return {}

    def on_resume(self, trainer: Any, state: Mapping[str, Any]) -> None:
        """Before ``on_start`` of a run that goes on from a saved state: what ``state`` gave at that time, or ``{}``."""


class Callbacks:
    """Notifies several callbacks of each event, and remembers whether one of them asked to stop."""

    def __init__(self, callbacks: Iterable[TrainingCallback] = ()) -> None:
        """Raises ``ArgumentTypeError`` for what is no ``TrainingCallback``."""
        self._callbacks = listed("callbacks", callbacks, "a list of TrainingCallback objects")
        for callback in self._callbacks:
            if not isinstance(callback, TrainingCallback):
                raise ArgumentTypeError(f"callbacks: got {described(callback)}; takes TrainingCallback objects")
        self.stopped = False

    def __iter__(self) -> Any:
        return iter(self._callbacks)

    def start(self, trainer: Any, total_steps: int) -> None:
        """A run begins."""
        self.stopped = False
        self._tell(lambda callback: callback.on_start(trainer, total_steps))

    def step(self, trainer: Any, metrics: StepMetrics) -> None:
        """An update was made."""
        self._tell(lambda callback: callback.on_step(trainer, metrics))

    def evaluation_batch(self, trainer: Any, done: int, total: int) -> None:
        """A part of the held-out loss was measured."""
        self._tell(lambda callback: callback.on_evaluation_batch(trainer, done, total))

    def evaluated(self, trainer: Any, metrics: EvalMetrics) -> None:
        """The held-out loss was measured."""
        self._tell(lambda callback: callback.on_evaluate(trainer, metrics))

    def step_end(self, trainer: Any) -> None:
        """A step is over."""
        self._tell(lambda callback: callback.on_step_end(trainer))

    def saved(self, trainer: Any, path: Path) -> None:
        """The state was written."""
        self._tell(lambda callback: callback.on_save(trainer, path))

    def end(self, trainer: Any, error: BaseException | None) -> None:
        """The run is over: every callback hears of it, also when one of them raises; the first error comes out."""
        failed: BaseException | None = None
        for callback in self._callbacks:
            try:
                callback.on_end(trainer, error)
            except BaseException as raised:
                failed = failed or raised
        if failed is not None:
            raise failed

    def states(self) -> dict[str, dict[str, Any]]:
        """What has to survive a resume, by the callback's name."""
        return {name: state for name, callback in self._named().items() if (state := callback.state())}

    def resume(self, trainer: Any, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Give every callback what it said of itself when the state was saved."""
        for name, callback in self._named().items():
            callback.on_resume(trainer, states.get(name, {}))

    def _named(self) -> dict[str, TrainingCallback]:
        """Each callback under its class's name, the second of a class under "Name.1"."""
        named: dict[str, TrainingCallback] = {}
        for callback in self._callbacks:
            kind = type(callback).__name__
            count = sum(type(other).__name__ == kind for other in named.values())
            named[f"{kind}.{count}" if count else kind] = callback
        return named

    def _tell(self, event: Callable[[TrainingCallback], bool | None]) -> None:
        for callback in self._callbacks:
            if event(callback) is False:
                self.stopped = True


class EarlyStopping(TrainingCallback):
    """Stops when the held-out loss has not fallen for ``patience`` evaluations in a row.

    It has fallen when it is below the best one by more than ``min_delta``. ``best`` and ``best_step`` say which that
    was. The first evaluation, before any step, counts as the one to beat.
    Raises ``TrainingError.InvalidConfig`` for a patience below 1 and a ``min_delta`` below 0.
    """

    @takes(patience=INTEGER, min_delta=NUMBER)
    def __init__(self, patience: int = 3, min_delta: float = 0.0) -> None:
        at_least("EarlyStopping", 1, patience=patience)
        if not 0 <= min_delta < math.inf:
            raise TrainingError.InvalidConfig(reason=f"EarlyStopping: min_delta is {min_delta}; takes at least 0")
        self.patience, self.min_delta = patience, min_delta
        self._resumed = False
        self._forget()

    def _forget(self) -> None:
        self.best, self.best_step, self.waited = math.inf, -1, 0
        self._seen = -1

    def on_start(self, trainer: Any, total_steps: int) -> bool | None:
        """A new run begins with nothing to beat."""
        if trainer.step == 0 and not self._resumed:  # a run may be resumed from its first evaluation
            self._forget()
        self._resumed = False
        return None

    def on_evaluate(self, trainer: Any, metrics: EvalMetrics) -> bool | None:
        """Compare with the best."""
        if metrics.step > self._seen:  # an evaluation that was interrupted comes again
            self._seen = metrics.step
            if metrics.loss < self.best - self.min_delta:
                self.best, self.best_step, self.waited = metrics.loss, metrics.step, 0
            else:
                self.waited += 1
        return self.waited < self.patience

    def state(self) -> dict[str, Any]:
        """The best loss so far, and how long ago it was."""
        if self.best_step < 0:
            return {}
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited, "seen": self._seen}

    def on_resume(self, trainer: Any, state: Mapping[str, Any]) -> None:
        """Go on waiting."""
        self._forget()
        self._resumed = True
        if state:
            self.best, self.best_step = state["best"], state["best_step"]
            self.waited, self._seen = state["waited"], state["seen"]

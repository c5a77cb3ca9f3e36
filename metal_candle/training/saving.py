"""``SaveState``: a run's state, and its adapter, on disk as it goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..error import CheckpointError, TrainingError
from ..error.expect import DICT, INTEGER, PATH, TEXT, optional
from ..error.takes import takes
from ..files import remove_leftovers
from .bounds import at_least
from .callbacks import TrainingCallback
from .events import EvalMetrics, StepMetrics
from .position import Position
from .state import TrainingState


class SaveState(TrainingCallback):
    """Writes the run's state to ``path`` at the start, every ``every`` updates (0: not in between) and at the end.

    ``adapter`` is a folder for the adapter's own files, which are written after the state, but not at the start; a
    resume reads the state alone. ``base_model`` is the base model's name in those files. ``notes`` go into the state.

    A good state is never replaced by a bad one: it is written once its weights have given a finite loss, in the
    evaluation after the update or in the next update, and at the end unless a loss that is not finite ended the run.
    When a file cannot be written, the old one stays and the run ends; ``saved_step`` is the step that is on disk.
    Give it after the callbacks whose own state has to be of the same moment: ``MetricsLog``, ``EarlyStopping``.
    """

    @takes(path=PATH, every=INTEGER, adapter=optional(PATH), base_model=optional(TEXT), notes=optional(DICT))
    def __init__(
        self,
        path: str | PathLike[str],
        every: int = 0,
        *,
        adapter: str | PathLike[str] | None = None,
        base_model: str | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ``TrainingError.InvalidConfig`` for a negative ``every``."""
        at_least("SaveState", 0, every=every)
        self.path, self.every, self.adapter = Path(path), every, None if adapter is None else Path(adapter)
        self.saved_step: int | None = None
        self._base_model, self._notes = base_model, dict(notes or {})
        self._written: Position | None = None
        self._waiting: TrainingState | None = None
        self._good = True
        self._resumed = False

    def on_resume(self, trainer: Any, state: Mapping[str, Any]) -> None:
        """The state is there already, if it came from here; a kill may have come before the adapter's files."""
        self._resumed = True
        if self.path.exists():
            self._written, self.saved_step = trainer.position, trainer.step
            self._write_adapter(trainer, trainer.state())

    def on_start(self, trainer: Any, total_steps: int) -> bool | None:
        """Forget the run before; remove what interrupted saves left."""
        self._waiting, self._good = None, True
        if trainer.step == 0 and not self._resumed:
            self._written = self.saved_step = None
        self._resumed = False
        remove_leftovers(self.path.parent)
        return None

    def on_evaluate(self, trainer: Any, metrics: EvalMetrics) -> bool | None:
        """See whether the weights are good."""
        self._good = math.isfinite(metrics.loss)
        return None

    def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
        """The weights of the update before gave a finite loss: their state may be written."""
        if self._waiting is not None:
            self._write(trainer, self._waiting)
        return None

    def on_step_end(self, trainer: Any) -> bool | None:
        """Save where it is due."""
        position = trainer.position
        due = position.step == 0 or (self.every > 0 and position.step % self.every == 0)
        if due and self._written != position:
            state = trainer.state(self._notes)
            if position.step == 0 or position.evaluated == position.step:
                self._write(trainer, state)
            else:
                self._waiting = state
        return None

    def on_end(self, trainer: Any, error: BaseException | None) -> None:
        """Save, unless a loss that is not finite or a file that cannot be written is what ended the run."""
        self._waiting = None
        if not self._good or isinstance(error, (TrainingError, CheckpointError)):
            return
        if self._written != trainer.position:
            self._write(trainer, trainer.state(self._notes))

    def _write(self, trainer: Any, state: TrainingState) -> None:
        self._waiting = None
        state.save(self.path)
        self.saved_step = state.step
        self._write_adapter(trainer, state)
        # Only now: where an interrupt comes between the two, the end of the run writes both.
        self._written = state.position
        trainer.callbacks.saved(trainer, self.path)

    def _write_adapter(self, trainer: Any, state: TrainingState) -> None:
        if self.adapter is not None and state.step:
            state.adapter(trainer.model).save(self.adapter, self._base_model)


class SaveBest(TrainingCallback):
    """Writes the adapter to a folder whenever the held-out loss after a step is the lowest so far.

    ``best`` is that loss, ``best_step`` the step; both survive a resume.
    """

    @takes(adapter=PATH, base_model=optional(TEXT))
    def __init__(self, adapter: str | PathLike[str], base_model: str | None = None) -> None:
        self.adapter, self._base_model = Path(adapter), base_model
        self.best, self.best_step = math.inf, -1

    def on_start(self, trainer: Any, total_steps: int) -> bool | None:
        """A new run begins with nothing to beat: before its first step there is no best one."""
        if trainer.step == 0:
            self.best, self.best_step = math.inf, -1
        return None

    def on_evaluate(self, trainer: Any, metrics: EvalMetrics) -> bool | None:
        """Save if it is the best."""
        if metrics.step and metrics.loss < self.best:
            trainer.adapter.save(self.adapter, self._base_model)
            self.best, self.best_step = metrics.loss, metrics.step
        return None

    def state(self) -> dict[str, Any]:
        """The best loss so far."""
        return {"best": self.best, "best_step": self.best_step} if self.best_step > 0 else {}

    def on_resume(self, trainer: Any, state: Mapping[str, Any]) -> None:
        """Go on comparing."""
        self.best, self.best_step = state.get("best", math.inf), state.get("best_step", -1)

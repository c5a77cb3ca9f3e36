"""``AdapterTrainer``: trains an adapter over a data set, and saves and resumes the state of the run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..error import TrainingError
from ..error.expect import DICT, FUNCTION, INTEGER, a, list_of, optional
from ..error.takes import takes
from ..error.text import described
from ..models.adaptable import AdaptableModel
from ..nn.optim import AdamW
from ..tensor.cache_limit import bounded_cache
from ..tensor.eager import Tensor
from .adapter import MODEL, LoRAAdapter
from .batch_loss import check_packable
from .callbacks import Callbacks, TrainingCallback
from .config import MAY_CHANGE, TrainingConfig
from .data.batching import Batch
from .data.tokenizing import EXAMPLES, Example
from .epochs import epoch_batches, planned_steps
from .events import EvalMetrics, StepMetrics
from .fingerprint import DataFingerprint, ModelFingerprint
from .finite import expect_finite
from .interruption import Undone
from .loop import events
from .position import Position
from .recorded import differences, record_of_config
from .state import (
    RANDOM_KEY,
    TrainingState,
    adapter_variables,
    model_differences,
    optimizer_state,
    random_key,
    refuse,
    set_random_key,
    state_of,
)
from .update import Update


class AdapterTrainer:
    """Trains an adapter, which it applies to a frozen model.

    Gradients are computed down to the first adapted layer only, as nothing below depends on a variable. ``callbacks``
    are notified of the run's events, see ``TrainingCallback``.

    ``state()`` is everything that a run needs to continue; ``save_state`` writes it, ``resume`` and ``load_state`` read
    it. A resumed run ends bit for bit like one that was never interrupted, on the same device with the same versions.
    """

    @takes(model=MODEL, adapter=a(LoRAAdapter), config=a(TrainingConfig))
    def __init__(
        self,
        model: AdaptableModel,
        adapter: LoRAAdapter,
        config: TrainingConfig,
        pad_id: int = 0,
        callbacks: Iterable[TrainingCallback] = (),
    ) -> None:
        config.validate()
        if not adapter.trainable_variables():
            raise TrainingError.InvalidConfig(reason="the adapter adapts nothing; give it target_modules")
        if config.packing:
            check_packable(model)
        if not (type(pad_id) is int and 0 <= pad_id < model.vocab_size()):
            raise TrainingError.InvalidConfig(
                reason=f"pad_id is {described(pad_id)}; takes a token id below {model.vocab_size()}"
            )
        self.callbacks = Callbacks(callbacks)
        self.model, self.adapter, self.config = model, adapter, config
        self.optimizer = AdamW(adapter.trainable_variables(), config.optimizer_params())
        self.update = Update(model, self.optimizer, config)
        model.apply_adapter(adapter)
        self.position = Position()
        self.metrics: dict[str, float] = {}
        self.pad_id = pad_id
        self._data: tuple[Sequence[Example], Sequence[Example]] | None = None
        self._resumed: TrainingState | None = None
        self._key: mx.array | None = None
        self._fingerprint: DataFingerprint | None = None

    # --- a run --------------------------------------------------------------------------------

    @takes(examples=EXAMPLES)
    def total_steps(self, examples: Sequence[Example]) -> int:
        """How many updates a run over these examples makes."""
        return planned_steps(self.config, examples)

    @takes(train=EXAMPLES, valid=optional(EXAMPLES))
    def run(
        self, train: Sequence[Example], valid: Sequence[Example] | None = None
    ) -> Iterator[StepMetrics | EvalMetrics]:
        """Train from the trainer's position on; yields the metrics of each update and each evaluation as it happens.

        The held-out loss is measured before the first step, every ``eval_every`` steps and at the end. A callback can
        end the run after a step, and so can the caller by leaving the loop; another call continues it. Raises
        ``TrainingError.Failed`` if the loss is not finite, ``TrainingError.Gradient`` if a gradient is not, both with
        the weights of the step before, and ``TrainingError.StateError`` for other data than those of the run that is
        resumed. Warns of rows that are longer than the model's context.
        """
        if not train:
            raise TrainingError.InvalidConfig(reason="there are no examples to train on")
        valid = valid or ()
        context = getattr(getattr(self.model, "config", None), "max_position_embeddings", None)
        longest = max(len(example.tokens) - 1 for example in train)
        if context is not None and longest > context:
            text = f"run: the longest row has {longest} tokens, the model's context is {context}"
            warnings.warn(text, stacklevel=3)
        resumed, fingerprint = self._resumed, None
        if resumed is not None and resumed.data is not None:
            fingerprint = DataFingerprint.of(train, valid)
            refuse(resumed.source, fingerprint.differences(resumed.data))
        self._data, self._fingerprint = (train, valid), fingerprint
        return events(self, train, valid)

    def resume_callbacks(self) -> None:
        """Give the callbacks of a run that goes on what they said of themselves when its state was saved."""
        if self._resumed is not None:
            self.callbacks.resume(self, self._resumed.callbacks)
            self._resumed = None  # only now: who is refused, or interrupted, is asked again

    def take_random_key(self) -> None:
        """Let this thread draw on from a state that was loaded: each thread has a generator of its own."""
        key, self._key = self._key, None
        if key is not None:
            set_random_key(key)

    @takes(examples=EXAMPLES, epoch=INTEGER)
    def batches(self, examples: Sequence[Example], epoch: int) -> Iterator[Batch]:
        """The batches of an epoch: a function of the data, the configuration and the epoch."""
        return epoch_batches(self.config, examples, epoch, self.pad_id)

    @property
    def step(self) -> int:
        """How many updates were made."""
        return self.position.step

    @takes(group=list_of(Batch, "a list of Batches, as batches() gives"))
    def train_step(self, group: list[Batch]) -> StepMetrics:
        """Make one update from the batches of ``group``; every trained token weighs the same. Raises as ``run``."""
        start = time.perf_counter()
        self.take_random_key()
        rate = self.config.lr_scheduler.get_lr(self.step + 1)
        self.optimizer.set_learning_rate(rate)
        total = _trained("train_step", group)
        self.update.prepare(group)  # before the block that takes back what is in the sums
        # An interrupt too: never a step that is half done.
        with bounded_cache(self.config.cache_limit), self.undone_by_errors():
            loss, norm = self.update.make(group, total)
            expect_finite(loss, norm, self.step)
            self.position = replace(self.position, step=self.step + 1)
            self.metrics = {**self.metrics, "loss": loss}
        tokens = sum(batch.inputs.size for batch in group)
        return StepMetrics(loss, self.step, rate, norm, tokens, total, time.perf_counter() - start)

    def undone_by_errors(self) -> Undone:
        """A block: what it did to variables, position and random state is taken back when it raises.

        Arrays never change, so that keeping them is free.
        """
        held = [(var, var.mlx()) for var in self.update.variables()]
        key, position, metrics = random_key(), self.position, self.metrics

        def undo() -> None:
            for var, value in held:
                var.set(Tensor.from_mlx(value, var.device))
            set_random_key(key)
            self.position, self.metrics = position, metrics

        return Undone(undo)

    @takes(examples=EXAMPLES, after_batch=optional(FUNCTION))
    def evaluate(
        self, examples: Sequence[Example], after_batch: Callable[[int, int], object] | None = None
    ) -> EvalMetrics:
        """The mean loss over the trained tokens of ``examples``, without dropout.

        ``after_batch(done, total)`` counts the batches; what it raises ends the evaluation. Raises
        ``TrainingError.InvalidConfig`` where there is no trained token.
        """
        start = time.perf_counter()
        training = [layer.is_training() for _, layer in self.adapter.layers()]
        self.adapter.set_training(False)
        try:
            listed = list(self.batches(examples, 0))
            total = _trained("evaluate", listed)
            parts: list[float] = []
            with bounded_cache(self.config.cache_limit):
                for batch in listed:
                    parts.append(self.update.batch_loss(batch, total))
                    if after_batch is not None:
                        after_batch(len(parts), len(listed))
        finally:
            for (_, layer), before in zip(self.adapter.layers(), training):
                layer.set_training(before)
        loss = sum(parts)
        self.metrics = {**self.metrics, "held_out_loss": loss}
        return EvalMetrics(loss, self.step, total, time.perf_counter() - start)

    # --- state --------------------------------------------------------------------------------

    @takes(notes=optional(DICT))
    def state(self, notes: Mapping[str, Any] | None = None) -> TrainingState:
        """All that the run needs to continue from here; ``notes`` are the caller's own, values that JSON can hold."""
        arrays = {name: var.mlx() for name, var in adapter_variables(self.adapter).items()}
        for name, tensor in self.optimizer.state().items():
            arrays[f"optimizer.{name}"] = tensor.mlx()
        arrays[RANDOM_KEY] = random_key() if self._key is None else self._key
        mx.eval(arrays)  # another thread could not
        layers = {path: layer.config() for path in self.adapter.paths() if (layer := self.adapter.layer_at(path))}
        # Between load_state and run the data are not there yet, and the callbacks know of nothing.
        waiting = self._resumed
        data = waiting.data if waiting is not None else None if self._data is None else self.data_fingerprint()
        return TrainingState(
            self.position,
            record_of_config(self.config),
            self.pad_id,
            self.adapter.config(),
            layers,
            ModelFingerprint.of(self.model),
            data,
            self.callbacks.states() if waiting is None else waiting.callbacks,
            arrays,
            dict(self.metrics),
            dict(notes or {}),
        )

    def data_fingerprint(self) -> DataFingerprint:
        """The fingerprint of the rows that ``run`` was given last."""
        if self._fingerprint is None:
            self._fingerprint = DataFingerprint.of(*(self._data or ((), ())))
        return self._fingerprint

    def save_state(self, path: str | PathLike[str], notes: Mapping[str, Any] | None = None) -> None:
        """Write ``state()`` as one file, whole or not at all. Raises ``CheckpointError.SaveFailed``."""
        self.state(notes).save(path)
        self.callbacks.saved(self, Path(path))

    def load_state(self, state: TrainingState | str | PathLike[str]) -> None:
        """Continue from a state, given itself or as a file or a run's folder. When this raises, nothing has changed.

        Fields of the configuration in ``MAY_CHANGE`` may differ. Raises ``TrainingError.StateError``, which names
        what else differs: another model, adapter, configuration or optimizer; and as ``TrainingState.load``. The data
        are compared when ``run`` is given them.
        """
        state = state_of(state)
        here, there = record_of_config(self.config), dict(state.config)
        for name in MAY_CHANGE:
            here.pop(name, None)
            there.pop(name, None)
        wrong = differences({**here, "pad_id": self.pad_id}, {**there, "pad_id": state.pad_id})
        wrong += model_differences(self.model, state)
        for path in self.adapter.paths():
            layer = self.adapter.layer_at(path)
            if layer is not None and path in state.layers and layer.config() != state.layers[path]:
                wrong.append(f"{path} has {layer.config()} here, {state.layers[path]} there")
        refuse(state.source, wrong)
        state.check_adapter(self.adapter)
        with self.undone_by_errors():
            self.optimizer.load_state(optimizer_state(state.arrays, self.model.device))
            for name, var in adapter_variables(self.adapter).items():
                var.set(Tensor.from_mlx(state.arrays[name], var.device))
            self._key = state.arrays[RANDOM_KEY]
            self.position, self.metrics, self._resumed = state.position, dict(state.metrics), state

    @classmethod
    @takes(model=MODEL)
    def resume(
        cls,
        state: TrainingState | str | PathLike[str],
        model: AdaptableModel,
        callbacks: Iterable[TrainingCallback] = (),
        **changes: Any,
    ) -> AdapterTrainer:
        """The trainer of a saved run, with its adapter, configuration and position; ``run`` it with the same data.

        ``changes`` are fields of the configuration that may change: ``num_epochs=5`` trains on. Raises as
        ``load_state``, and ``TrainingError.InvalidConfig`` for a field that the steps depend on.
        """
        state = state_of(state)
        if fixed := [name for name in changes if name not in MAY_CHANGE]:
            known = {field.name for field in fields(TrainingConfig)}
            what = "is the run's own" if fixed[0] in known else "does not exist"
            raise TrainingError.InvalidConfig(reason=f"resume: {fixed[0]} {what}; takes {', '.join(MAY_CHANGE)}")
        config = replace(state.training_config(), **changes)
        # Before the adapter acts in a model that it is not for.
        refuse(state.source, model_differences(model, state))
        trainer = cls(model, state.adapter(model), config, state.pad_id, callbacks)
        trainer.load_state(state)
        return trainer


def _trained(op: str, batches: Sequence[Batch]) -> int:
    """How many tokens are trained on. Raises ``TrainingError.InvalidConfig`` for none, which have no mean loss."""
    total = sum(batch.trained_tokens for batch in batches)
    if not total:
        raise TrainingError.InvalidConfig(reason=f"{op}: no token of {len(batches)} batches is trained on")
    return total

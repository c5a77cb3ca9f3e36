"""The training loop of v1, over ready tensors. metal-candle: ``metal_candle::training::Trainer``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Union

from ..constructors import New
from ..device import DeviceLike
from ..error import ArgumentTypeError, TrainingError
from ..error.expect import FUNCTION, INTEGER, a, listed, optional
from ..error.takes import takes
from ..error.text import described
from ..tensor.base import TensorBase
from .adamw import AdamW, config_of
from .adapter import LoRAAdapter, LoRAAdapterConfig
from .bounds import at_least
from .callbacks import Callbacks, TrainingCallback
from .config import TrainingConfig
from .events import StepMetrics
from .step import Forward, TrainingStep

Told = Union[TrainingCallback, Callable[[StepMetrics], Union[bool, None]]]
"""What is told of each step: a callback, or a function of its metrics. ``False`` ends the run."""


_NO_USE_FOR = (
    *("batch_size", "accumulation_steps", "max_length", "packing"),
    *("gradient_checkpointing", "cache_limit", "eval_every", "seed"),
)
"""Fields of a ``TrainingConfig`` that are about texts, held-out rows, or a model that the trainer knows."""


class Trainer(New):
    """Creates an adapter and trains it through the caller's forward function; ``AdapterTrainer`` trains on texts.

    ``forward_fn(input_ids)`` makes logits ``(b, t, v)`` by means of ``lora_adapter()``: after
    ``model.apply_adapter(trainer.lora_adapter())`` it may be the model itself. Of ``training_config`` it takes what the
    crate's has, and ``max_steps``. Raises ``TrainingError.InvalidConfig`` for another setting, which only
    ``AdapterTrainer`` follows, and for numbers outside their ranges, the schedule's included.
    """

    @takes(
        hidden_size=INTEGER,
        intermediate_size=INTEGER,
        num_layers=INTEGER,
        training_config=optional(a(TrainingConfig)),
    )
    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_layers: int,
        lora_config: LoRAAdapterConfig | None = None,
        training_config: TrainingConfig | None = None,
        device: DeviceLike = None,
    ) -> None:
        at_least("Trainer", 1, hidden_size=hidden_size, intermediate_size=intermediate_size, num_layers=num_layers)
        self._config = training_config or TrainingConfig()
        self._config.validate()
        default = TrainingConfig()
        for name in _NO_USE_FOR:
            if getattr(self._config, name) != getattr(default, name):
                raise TrainingError.InvalidConfig(reason=f"Trainer has no use for {name}; AdapterTrainer has")
        self._adapter = LoRAAdapter(hidden_size, intermediate_size, num_layers, lora_config, device)
        self._optimizer = AdamW(config_of(self._config.optimizer_config), self._adapter.trainable_variables())
        self._step = TrainingStep()

    def lora_adapter(self) -> LoRAAdapter:
        """The adapter that is trained."""
        return self._adapter

    lora_adapter_mut = lora_adapter

    def optimizer(self) -> AdamW:
        """The optimizer, whose state can be saved and restored."""
        return self._optimizer

    def global_step(self) -> int:
        """How many updates were made, by all calls of ``train``."""
        return self._step.step()

    @property
    def step(self) -> int:
        """``global_step()``, as callbacks read it."""
        return self.global_step()

    @takes(forward_fn=FUNCTION)
    def train(
        self,
        dataset: Sequence[tuple[TensorBase, TensorBase]],
        forward_fn: Forward,
        callbacks: Iterable[Told] = (),
    ) -> list[StepMetrics]:
        """Go through ``dataset``, pairs of ids and targets ``(b, t)``, ``num_epochs`` times: a step for each pair.

        The rate is the schedule's at the global step, which counts from 0. Gradients are clipped to ``max_grad_norm``.
        ``max_steps`` ends the run, and so does a callback. Prints nothing; an empty data set gives ``[]``. Raises as
        ``TrainingStep.execute``.
        """
        if isinstance(dataset, Iterator):
            raise TrainingError.InvalidConfig(
                reason=f"the data set is a {type(dataset).__name__}, which one epoch uses up; takes a list of pairs"
            )
        pairs = listed("Trainer.train", dataset, "a list of pairs (ids, targets)", "dataset")
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ArgumentTypeError(
                    f"Trainer.train: got {described(pair)} in the data set; takes pairs (ids, targets)"
                )
        several = listed("callbacks", callbacks, "a list of TrainingCallback objects and functions")
        told = Callbacks(map(_callback, several))
        modes = [(layer, layer.is_training()) for _, layer in self._adapter.layers()]
        self._adapter.set_training(True)
        error: BaseException | None = None
        try:
            return self._run(pairs, forward_fn, told)
        except BaseException as raised:
            error = raised
            raise
        finally:
            for layer, mode in modes:
                layer.set_training(mode)
            told.end(self, error)

    def _run(
        self, pairs: list[tuple[TensorBase, TensorBase]], forward_fn: Forward, told: Callbacks
    ) -> list[StepMetrics]:
        config = self._config
        planned = len(pairs) * config.num_epochs
        total = planned if config.max_steps is None else min(planned, config.max_steps)
        told.start(self, self.global_step() + total)
        done: list[StepMetrics] = []
        while len(done) < total and not told.stopped:
            input_ids, target_ids = pairs[len(done) % len(pairs)]
            rate = config.lr_scheduler.get_lr(self.global_step())
            step, limit = self._step, config.max_grad_norm
            done.append(step.execute(input_ids, target_ids, self._adapter, self._optimizer, rate, forward_fn, limit))
            told.step(self, done[-1])
            told.step_end(self)
        return done


class _Function(TrainingCallback):
    """A function of a step's metrics as a callback."""

    def __init__(self, function: Callable[[StepMetrics], bool | None]) -> None:
        self._function = function

    def on_step(self, trainer: Any, metrics: StepMetrics) -> bool | None:
        """Call it."""
        return self._function(metrics)


def _callback(told: Told) -> TrainingCallback:
    if isinstance(told, TrainingCallback):
        return told
    if not callable(told) or isinstance(told, type):
        raise ArgumentTypeError(f"callbacks: got {described(told)}; takes TrainingCallback objects and functions")
    return _Function(told)

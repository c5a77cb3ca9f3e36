"""Training an adapter: each step is one compiled function, evaluated at once."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..error import TrainingError
from ..models.projection import AdaptableModel
from ..nn.optim import AdamW, clip_factor, global_norm
from ..tensor.compiled import compile
from ..tensor.eager import Tensor
from ..tensor.var import Var
from .adapter import LoRAAdapter
from .config import TrainingConfig
from .data.batching import Batch, batch_count, batches
from .data.tokenizing import Example
from .loss import batch_loss, targets_of


@dataclass(frozen=True)
class StepMetrics:
    """What one update tells. ``step`` counts from 1, ``tokens`` those fed in, ``seconds`` the whole step."""

    loss: float
    step: int
    learning_rate: float
    grad_norm: float = 0.0
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class EvalMetrics:
    """The loss on the held-out examples after ``step`` updates: the mean over their trained tokens."""

    loss: float
    step: int
    trained_tokens: int
    seconds: float


class AdapterTrainer:
    """Trains the variables of an adapter in a frozen model.

    The adapter is applied to the model. Only what stands above the first adapted layer is differentiated,
    as nothing below depends on a variable.
    """

    def __init__(self, model: AdaptableModel, adapter: LoRAAdapter, config: TrainingConfig, pad_id: int = 0) -> None:
        config.validate()
        model.apply_adapter(adapter)
        self.model, self.adapter, self.config = model, adapter, config
        self.optimizer = AdamW(adapter.trainable_variables(), config.optimizer_config)
        self.step = 0
        self._pad_id = pad_id
        self._sums: list[Var] = []
        self._update = compile(self._whole_step)
        self._add = compile(self._micro_step)
        self._finish = compile(self._accumulated_step)
        self._loss = compile(lambda *tensors: batch_loss(model, *tensors))

    # --- compiled functions -------------------------------------------------------------------

    def _whole_step(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        loss = batch_loss(self.model, *tensors)
        grads = loss.backward()
        gradients = {var: grads[var] for var in self.optimizer.vars() if var in grads}
        return loss, self._apply(gradients)

    def _micro_step(self, *tensors: Tensor) -> Tensor:
        loss: Tensor = batch_loss(self.model, *tensors)
        grads = loss.backward()
        for var, total in zip(self.optimizer.vars(), self._sums):
            if var in grads:
                total.set(total + grads[var])
        return loss

    def _accumulated_step(self) -> Tensor:
        norm = self._apply(dict(zip(self.optimizer.vars(), (total.as_tensor() for total in self._sums))))
        for total in self._sums:
            total.set(total.zeros_like())
        return norm

    def _apply(self, gradients: dict[Var, Tensor]) -> Tensor:
        norm, limit = global_norm(gradients.values()), self.config.max_grad_norm
        self.optimizer.step(gradients, None if limit is None else clip_factor(norm, limit))
        return norm

    # --- a run --------------------------------------------------------------------------------

    def total_steps(self, examples: Sequence[Example]) -> int:
        """How many updates a run over these examples makes."""
        per_epoch = -(-batch_count(examples, self.config.batch_size) // self.config.accumulation_steps)
        planned = per_epoch * self.config.num_epochs
        return planned if self.config.max_steps is None else min(planned, self.config.max_steps)

    def run(self, train: Sequence[Example], valid: Sequence[Example] = ()) -> Iterator[StepMetrics | EvalMetrics]:
        """Train, giving what each update and each evaluation tells as it happens.

        The held-out loss is measured before the first step, every ``eval_every`` steps and at the end.
        Leaving the loop stops the run; the adapter then has the weights of the last whole step. Raises
        ``TrainingError.Failed`` when the loss is not finite, with the weights of the step before.
        """
        if not train:
            raise TrainingError.InvalidConfig(reason="there are no examples to train on")
        if valid:
            start = self.evaluate(valid)
            yield start
            if not math.isfinite(start.loss):
                raise TrainingError.Failed(
                    reason=f"held-out loss is {start.loss} before the first step: the model's weights give it; "
                    "try another model file or --dtype f32"
                )
        total, measured = self.total_steps(train), 0
        self.adapter.set_training(True)
        for group in self._groups(train):
            if self.step >= total:
                break
            yield self.train_step(group)
            if valid and self.config.eval_every and self.step % self.config.eval_every == 0:
                measured = self.step
                yield self.evaluate(valid)
        if valid and measured != self.step:
            yield self.evaluate(valid)
        self.adapter.set_training(False)

    def _groups(self, train: Sequence[Example]) -> Iterator[list[Batch]]:
        for epoch in range(self.config.num_epochs):
            source = iter(self._batches(train, epoch))
            while group := list(itertools.islice(source, self.config.accumulation_steps)):
                yield group

    def _batches(self, examples: Sequence[Example], epoch: int) -> Iterator[Batch]:
        config = self.config
        return iter(
            batches(
                examples,
                config.batch_size,
                seed=config.seed,
                epoch=epoch,
                pad_id=self._pad_id,
                max_length=config.max_length,
            )
        )

    def train_step(self, group: list[Batch]) -> StepMetrics:
        """One update from the batches of ``group``, whose tokens weigh alike. Raises as ``run``."""
        start = time.perf_counter()
        rate = self.config.lr_scheduler.get_lr(self.step + 1)
        self.optimizer.set_learning_rate(rate)
        total = sum(batch.trained_tokens for batch in group)
        before = self._state()
        try:
            loss, norm = self._compute(group, total)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
                raise TrainingError.Failed(
                    reason=f"{what} at step {self.step + 1}; the adapter keeps the weights of step {self.step}; "
                    "try a lower learning rate"
                )
        except BaseException:  # an interrupt too: never a step that is half done
            for var, value in before:
                var.set(Tensor.from_mlx(value, var.device))
            raise
        self.step += 1
        tokens = sum(batch.inputs.size for batch in group)
        return StepMetrics(loss, self.step, rate, norm, tokens, total, time.perf_counter() - start)

    def _compute(self, group: list[Batch], total: int) -> tuple[float, float]:
        """Loss and gradient norm of an update over ``total`` trained tokens, which it makes."""
        if len(group) == 1 and not self._sums:
            loss_tensor, norm_tensor = self._update(*targets_of(group[0], total, self.model.device).tensors())
            return float(loss_tensor), float(norm_tensor)
        if not self._sums:
            self._sums = [Var.zeros(var.shape, var.dtype, var.device) for var in self.optimizer.vars()]
        parts = [self._add(*targets_of(batch, total, self.model.device).tensors()) for batch in group]
        return sum(map(float, parts)), float(self._finish())

    def _state(self) -> list[tuple[Var, Any]]:
        """The adapter's and the optimizer's values: arrays never change, so that keeping them is free."""
        held = (*self.optimizer.vars(), *self.optimizer.cells(), *self._sums)
        return [(var, var.mlx()) for var in held]

    def evaluate(self, examples: Sequence[Example]) -> EvalMetrics:
        """The mean loss over the trained tokens of ``examples``, without dropout."""
        start = time.perf_counter()
        training = [layer.is_training() for _, layer in self.adapter.layers()]
        self.adapter.set_training(False)
        listed = list(self._batches(examples, 0))
        total = sum(batch.trained_tokens for batch in listed)
        loss = sum(float(self._loss(*targets_of(batch, total, self.model.device).tensors())) for batch in listed)
        for (_, layer), before in zip(self.adapter.layers(), training):
            layer.set_training(before)
        return EvalMetrics(loss, self.step, total, time.perf_counter() - start)

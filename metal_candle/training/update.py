"""What a trainer computes: an update of the adapter from some batches, and a loss alone, each as compiled functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..error import TrainingError
from ..models.adaptable import AdaptableModel
from ..nn.optim import AdamW, clip_factor, global_norm
from ..tensor.compiled import compile
from ..tensor.eager import Tensor
from ..tensor.var import Var
from .batch_loss import batch_loss, check_recomputable, targets_of
from .config import TrainingConfig
from .data.batching import Batch
from .data.shapes import most_shapes


class Update:
    """Loss, gradients, clipping and the optimizer's step, from one batch at once or from several.

    Of several, the gradients are added up in ``sums``, variables that are zero between updates. Each function is traced
    once for each shape of batches.
    """

    def __init__(self, model: AdaptableModel, optimizer: AdamW, config: TrainingConfig) -> None:
        """Raises ``TrainingError.InvalidConfig`` for gradient checkpointing of a model that has no blocks for it."""
        self._model, self._optimizer, self._config = model, optimizer, config
        self._recomputable = check_recomputable(model) if config.gradient_checkpointing else None
        self.sums: list[Var] = []
        # Every shape of whole batches, and of an epoch's last one, which has fewer rows: none is traced twice.
        plans = 2 * most_shapes(config.max_length)
        self._at_once = compile(self._whole, max_plans=plans)
        self._add = compile(self._add_gradients, max_plans=plans)
        self._finish = compile(self._apply_sums)
        self._loss = compile(lambda *tensors: batch_loss(model, *tensors), max_plans=plans)

    def prepare(self, group: Sequence[Batch]) -> None:
        """Make the sums, where this group of batches needs them and they are not there yet."""
        if self._accumulates(group):
            self.make_sums()

    def make_sums(self) -> None:
        """Make the sums, unless they are there."""
        if not self.sums:
            self.sums = [Var.zeros(var.shape, var.dtype, var.device) for var in self._optimizer.vars()]

    def variables(self) -> list[Var]:
        """All that an update changes: the trained variables, the optimizer's state, the sums."""
        return [*self._optimizer.vars(), *self._optimizer.cells(), *self.sums]

    def make(self, group: Sequence[Batch], total: int) -> tuple[float, float]:
        """Make the update of a group with ``total`` trained tokens; returns its loss and its gradients' norm."""
        if not self._accumulates(group):
            loss, norm = self._at_once(*self._tensors(group[0], total))
            return float(loss), float(norm)
        parts = [self._add(*self._tensors(batch, total)) for batch in group]
        return sum(map(float, parts)), float(self._finish())

    def batch_loss(self, batch: Batch, total: int) -> float:
        """A batch's part of the mean loss over ``total`` trained tokens; changes nothing."""
        return float(self._loss(*self._tensors(batch, total)))

    def of_batch(self) -> Callable[..., Any]:
        """The function of a batch's tensors that takes the most memory, not compiled."""
        return self._add_gradients if self.sums else self._whole

    def _accumulates(self, group: Sequence[Batch]) -> bool:
        # By the group and the configuration alone: a resumed run has to take the same way.
        return len(group) > 1 or self._config.accumulation_steps > 1

    def _tensors(self, batch: Batch, total: int) -> tuple[Tensor, ...]:
        return targets_of(batch, total, self._model.device).tensors()

    # --- compiled functions -------------------------------------------------------------------

    def _whole(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        loss = self._recorded_loss(*tensors)
        return loss, self._apply(self._gradients(loss))

    def _add_gradients(self, *tensors: Tensor) -> Tensor:
        loss: Tensor = self._recorded_loss(*tensors)
        grads = self._gradients(loss)
        for var, total in zip(self._optimizer.vars(), self.sums):
            if var in grads:
                total.set(total + grads[var])
        return loss

    def _apply_sums(self) -> Tensor:
        norm = self._apply(dict(zip(self._optimizer.vars(), (total.as_tensor() for total in self.sums))))
        for total in self.sums:
            total.set(total.zeros_like())
        return norm

    def _recorded_loss(self, *tensors: Tensor) -> Any:
        """The loss, recorded as the configuration says; the model's own setting is as it was after it."""
        if self._recomputable is None:
            return batch_loss(self._model, *tensors)
        before = self._recomputable.gradient_checkpointing(True)
        try:
            return batch_loss(self._model, *tensors)
        finally:
            self._recomputable.gradient_checkpointing(before)

    def _gradients(self, loss: Any) -> dict[Var, Tensor]:
        grads = loss.backward()
        found = {var: grads[var] for var in self._optimizer.vars() if var in grads}
        if not found:
            raise TrainingError.StateError(
                reason="the loss depends on no variable of the trainer's adapter: another adapter acts in the model, "
                "or none; takes model.apply_adapter(trainer.adapter)"
            )
        return found

    def _apply(self, gradients: dict[Var, Tensor]) -> Tensor:
        norm, limit = global_norm(gradients.values()), self._config.max_grad_norm
        self._optimizer.step(gradients, None if limit is None else clip_factor(norm, limit))
        return norm

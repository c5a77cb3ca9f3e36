"""A step of v1's training: forward, loss, backward, update. metal-candle: ``metal_candle::training::TrainingStep``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

from ..constructors import Default, New
from ..dtype import DType
from ..error import ArgumentTypeError
from ..error.expect import FUNCTION, NUMBER, a, optional
from ..error.takes import takes
from ..error.text import described
from ..graph.operation import to_numpy
from ..nn.optim import global_norm
from ..tensor.base import TensorBase
from .adamw import AdamW
from .adapter import LoRAAdapter
from .events import StepMetrics
from .finite import expect_finite
from .losses import cross_entropy_loss

Forward = Callable[[Any], Any]
"""From token ids ``(b, t)`` to logits ``(b, t, v)``."""


class TrainingStep(New, Default):
    """Makes training steps and counts them: ``step()`` is their number, ``reset()`` sets it to 0.

    Positions whose target is -100 are ignored, and in U32 targets those of 2^32 - 1 (metal-candle's ``u32::MAX``).
    """

    def __init__(self) -> None:
        self._step = 0
        self._warned = False

    def step(self) -> int:
        """How many steps were made."""
        return self._step

    def reset(self) -> None:
        """Count from 0 again."""
        self._step = 0

    @takes(
        input_ids=a(TensorBase, takes="a tensor of ids"),
        target_ids=a(TensorBase, takes="a tensor of ids"),
        lora_adapter=a(LoRAAdapter),
        optimizer=a(AdamW, takes="a metal_candle.training.AdamW"),
        learning_rate=NUMBER,
        forward_fn=FUNCTION,
        max_grad_norm=optional(NUMBER),
    )
    def execute(
        self,
        input_ids: TensorBase,
        target_ids: TensorBase,
        lora_adapter: LoRAAdapter,
        optimizer: AdamW,
        learning_rate: float,
        forward_fn: Forward,
        max_grad_norm: float | None = None,
    ) -> StepMetrics:
        """The loss of ``forward_fn(input_ids)``, and one update of each variable of the adapter with a gradient.

        ``max_grad_norm`` scales the gradients so that the norm of all of them is at most that; ``None`` leaves them.
        Logits that depend on no variable of the adapter give a loss and change nothing; a ``UserWarning`` says so once.
        Raises, with all variables as they were, ``TrainingError.Failed`` where the loss is not finite,
        ``TrainingError.Gradient`` where a gradient is not, and as ``cross_entropy_loss``.
        """
        start = time.perf_counter()
        optimizer.set_lr(learning_rate)
        loss = cross_entropy_loss(expect_logits(forward_fn(input_ids)), target_ids, ignored_of(target_ids))
        grads = loss.backward()
        value = float(loss.to_scalar())
        gradients = {var: grads[var] for var in lora_adapter.trainable_variables() if var in grads}
        norm = float(global_norm(list(gradients.values())).to_scalar()) if gradients else 0.0
        expect_finite(value, norm, self._step)
        if gradients:
            optimizer.step_vars(gradients, max_grad_norm)
        else:
            self._warn()
        self._step += 1
        tokens, trained = input_ids.elem_count(), _count(target_ids)
        return StepMetrics(value, self._step, learning_rate, norm, tokens, trained, time.perf_counter() - start)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "training: the logits depend on no variable of the adapter, so nothing is updated; forward_fn has to "
                "use the adapter, by model.apply_adapter(adapter) or adapter.forward(layer, module, x)",
                UserWarning,
                stacklevel=3,
            )


def expect_logits(logits: object) -> Any:
    """What ``forward_fn`` gave. Raises ``ArgumentTypeError`` for what is no tensor."""
    if not isinstance(logits, TensorBase):
        raise ArgumentTypeError(f"training: forward_fn gave {described(logits)}; takes a tensor of logits")
    return logits


def ignored_of(targets: TensorBase) -> int | None:
    """The id that marks positions of ``targets`` which do not count; ``None`` for U8, all of which are ids."""
    return {DType.U8: None, DType.U32: 2**32 - 1}.get(targets.dtype, -100)


def _count(targets: TensorBase) -> int:
    ignored = ignored_of(targets)
    return targets.elem_count() if ignored is None else int((to_numpy(targets.mlx()) != ignored).sum())

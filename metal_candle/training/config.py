"""How a training run goes: epochs, batches, rates, clipping, evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..error import TrainingError
from ..nn.optim import ParamsAdamW
from .schedule import LRScheduler


@dataclass(frozen=True)
class TrainingConfig:
    """metal-candle's ``TrainingConfig``, with what a run over a data set needs besides.

    ``max_steps`` ends the run early; ``accumulation_steps`` batches make one update; ``eval_every`` steps
    (0 for only at the end) the held-out loss is measured; ``max_grad_norm`` ``None`` switches clipping off.
    """

    num_epochs: int = 3
    lr_scheduler: LRScheduler = field(default_factory=lambda: LRScheduler.constant(1e-4))
    optimizer_config: ParamsAdamW = field(default_factory=lambda: ParamsAdamW(lr=1e-4))
    max_grad_norm: float | None = 1.0
    batch_size: int = 4
    accumulation_steps: int = 1
    max_steps: int | None = None
    max_length: int = 1024
    eval_every: int = 0
    seed: int = 0

    def validate(self) -> None:
        """Raise ``TrainingError.InvalidConfig`` for numbers outside their ranges."""
        for name in ("num_epochs", "batch_size", "accumulation_steps", "max_length"):
            if getattr(self, name) < 1:
                raise TrainingError.InvalidConfig(reason=f"{name} is {getattr(self, name)}; takes at least 1")
        if self.max_steps is not None and self.max_steps < 1:
            raise TrainingError.InvalidConfig(reason=f"max_steps is {self.max_steps}; takes at least 1")
        if self.eval_every < 0:
            raise TrainingError.InvalidConfig(reason=f"eval_every is {self.eval_every}; takes at least 0")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise TrainingError.InvalidConfig(reason=f"max_grad_norm is {self.max_grad_norm}; takes more than 0")
        if not 0 <= self.seed < 2**63:
            raise TrainingError.InvalidConfig(reason=f"seed is {self.seed}; takes 0 to 2^63 - 1")
        self.lr_scheduler.validate()
        self.optimizer_config.validate()

"""``TrainingConfig``: epochs, batches, learning rate, clipping, evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..constructors import Default
from ..error import TrainingError
from ..error.expect import FLAG, INTEGER, NUMBER, Kind, a, optional
from ..error.text import described
from ..nn.optim import ParamsAdamW
from ..scalar import hold_python_numbers
from .adamw import AdamWConfig
from .schedule import LRScheduler

MAY_CHANGE = ("num_epochs", "max_steps", "eval_every", "cache_limit")
"""Fields of a ``TrainingConfig`` that a resumed run may have otherwise: what a step does depends on none of them."""


@dataclass(frozen=True)
class TrainingConfig(Default):
    """How an adapter is trained: metal-candle's ``TrainingConfig``, and what a run over a data set needs besides.

    ``max_steps`` ends the run after so many updates, each of ``accumulation_steps`` batches. The held-out loss is
    measured every ``eval_every`` steps, with 0 only at the start and the end. ``max_grad_norm`` clips the gradients'
    global norm, ``None`` does not. ``packing`` puts several rows into a sequence of at most ``max_length`` tokens, none
    of which sees another; ``batch_size`` then counts sequences. ``gradient_checkpointing`` recomputes each block in the
    backward pass instead of keeping its activations: less memory, more time. ``cache_limit`` is how many bytes of
    freed memory MLX may keep during the run, ``None`` for ``METAL_CANDLE_CACHE_LIMIT``.
    """

    num_epochs: int = 3
    lr_scheduler: LRScheduler = field(default_factory=lambda: LRScheduler.constant(1e-4))
    optimizer_config: AdamWConfig | ParamsAdamW = field(default_factory=AdamWConfig)
    max_grad_norm: float | None = 1.0
    batch_size: int = 4
    accumulation_steps: int = 1
    max_steps: int | None = None
    max_length: int = 1024
    packing: bool = False
    gradient_checkpointing: bool = False
    cache_limit: int | None = None
    eval_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        hold_python_numbers(self)

    def optimizer_params(self) -> ParamsAdamW:
        """``optimizer_config`` as ``nn.AdamW`` takes it."""
        config = self.optimizer_config
        return config.to_params() if isinstance(config, AdamWConfig) else config

    def validate(self) -> None:
        """Raise ``TrainingError.InvalidConfig`` for numbers outside their ranges."""
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if not kind.holds(value):
                raise TrainingError.InvalidConfig(reason=f"{name} is {described(value)}; takes {kind.takes}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise TrainingError.InvalidConfig(reason=f"{name} is {value}; takes at least {least}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise TrainingError.InvalidConfig(reason=f"max_grad_norm is {self.max_grad_norm}; takes more than 0")
        if not 0 <= self.seed < 2**63:
            raise TrainingError.InvalidConfig(reason=f"seed is {self.seed}; takes 0 to 2^63 - 1")
        self.lr_scheduler.validate()
        self.optimizer_config.validate()


_KINDS = {
    "num_epochs": INTEGER,
    "lr_scheduler": a(LRScheduler, "an LRScheduler"),
    "optimizer_config": Kind("an AdamWConfig", lambda config: isinstance(config, (AdamWConfig, ParamsAdamW))),
    "max_grad_norm": optional(NUMBER),
    "batch_size": INTEGER,
    "accumulation_steps": INTEGER,
    "max_steps": optional(INTEGER),
    "max_length": INTEGER,
    "packing": FLAG,
    "gradient_checkpointing": FLAG,
    "cache_limit": optional(INTEGER),
    "eval_every": INTEGER,
    "seed": INTEGER,
}
_LEAST = {
    "num_epochs": 1,
    "batch_size": 1,
    "accumulation_steps": 1,
    "max_steps": 1,
    "max_length": 1,
    "cache_limit": 0,
    "eval_every": 0,
}

"""One token after the other: by NumPy, or on the device, whose next step begins before a token is known here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..device import Device
from ..graph.evaluate import on_device
from ..graph.operation import to_numpy
from . import device_sampling
from .config import GeneratorConfig
from .sampling import checked, described_rows, generator_for, penalized
from .step import Following, Logits, Step


class Chosen(NamedTuple):
    """A token, its logit and its probability among all, both after the repetition penalty."""

    token: int
    logit: float
    probability: float


class Choosing(Protocol):
    """What follows a prompt that was read."""

    def next(self, ids: Sequence[int], more: bool) -> Chosen:
        """The token after ``ids``, all so far. With ``more`` another will be asked for.

        Raises ``InferenceError.SamplingError`` for logits by which none can be chosen.
        """


class ByHost:
    """Tokens chosen by NumPy, each before the next step begins."""

    def __init__(self, step: Step, logits: Logits, config: GeneratorConfig) -> None:
        self._step, self._config = step, config
        self._logits: Logits | None = logits
        self._filters = config.filters()
        self._rng = generator_for(self._filters, config.seed)

    def next(self, ids: Sequence[int], more: bool) -> Chosen:
        """The token after ``ids``."""
        logits, self._logits = self._logits, None
        if logits is None:
            logits = self._step.feed(ids[-1:])
        logits = checked(penalized(logits, ids, self._config.repetition_penalty))
        token = self._filters.draw(logits, self._rng)
        ((logit, probability),) = described_rows(np.array([token]), logits[None])
        return Chosen(token, float(logit), float(probability))


class OnDevice:
    """Tokens chosen by MLX: the device goes on with one while it is read here and the step behind it is prepared."""

    def __init__(
        self, step: Following, logits: Logits, config: GeneratorConfig, ids: Sequence[int], device: Device
    ) -> None:
        self._step, self._config, self._device = step, config, device
        self._filters = config.filters()
        self._rng = generator_for(self._filters, config.seed)
        with on_device(device):
            self._seen = None if config.repetition_penalty == 1 else device_sampling.seen_of(ids, logits.size)
            self._begin(mx.array(logits))

    def next(self, ids: Sequence[int], more: bool) -> Chosen:
        """The token after ``ids``; with ``more`` the step behind it is under way then."""
        token, facts, logits = self._pending
        with on_device(self._device):
            if more:
                if self._seen is not None:
                    self._seen = mx.put_along_axis(self._seen, token.reshape(1), mx.array(True), axis=0)
                self._begin(self._step.follow(token))
            logit, probability, total = to_numpy(facts).tolist()
            if not math.isfinite(total):
                checked(to_numpy(logits))
            number = int(to_numpy(token))
        if more:
            self._step.keep(number)
        return Chosen(number, logit, probability)

    def _begin(self, logits: mx.array) -> None:
        values = logits.astype(mx.float32)
        if self._seen is not None:
            values = device_sampling.penalized(values, self._seen, self._config.repetition_penalty)
        at = 0.0 if self._filters.is_greedy() else self._rng.random()
        token = device_sampling.choose(values, self._filters, at)
        facts = device_sampling.facts(token, values)
        self._pending = token, facts, values
        mx.async_eval(token, facts)  # type: ignore[no-untyped-call]


def choosing_of(step: Step, logits: Logits, config: GeneratorConfig, ids: Sequence[int], device: Device) -> Choosing:
    """What follows ``ids``, which ``step`` has read and which gave ``logits``."""
    if isinstance(step, Following) and step.can_follow():
        return OnDevice(step, logits, config, ids, device)
    return ByHost(step, logits, config)

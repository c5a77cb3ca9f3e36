"""An mlx module as a function of ids and of the factors that act in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.dropout import Dropout

from .adapted import Seats, Update
from .head import RowLogits


class Network:
    """A model, the seats of its updates, and how its rows meet the head: what all records of it share."""

    def __init__(
        self,
        model: Any,
        seats: Seats,
        rows: RowLogits,
        vocabulary: int,
        parameters: int,
        placed: Callable[[Sequence[str]], AbstractContextManager[None]],
    ) -> None:
        self.vocabulary, self.parameters = vocabulary, parameters
        self._model, self._seats, self._rows, self._placed = model, seats, rows, placed
        self._modules = [module for _, module in model.named_modules() if not isinstance(module, Dropout)]
        self._lock = threading.RLock()

    def logits(self, ids: mx.array, updates: Mapping[str, Update], differentiated: bool) -> mx.array:
        """The logits ``(b, t, vocabulary)`` with exactly these updates."""
        with self.mode(differentiated), self._placed(tuple(updates)), self._seats.bound(updates):
            found: mx.array = self._model(ids)
        return found

    def row_logits(
        self, ids: mx.array, rows: mx.array, updates: Mapping[str, Update], differentiated: bool
    ) -> mx.array:
        """The logits ``(n, vocabulary)`` at rows ``(n,)`` with exactly these updates."""
        with self.mode(differentiated), self._placed(tuple(updates)), self._seats.bound(updates):
            return self._rows(ids, rows)

    @contextmanager
    def mode(self, differentiated: bool) -> Iterator[None]:
        """Within it the modules are in training mode, where a gradient is taken, or not.

        Kernels that MLX cannot differentiate stand aside in training mode. Dropout of the base stays off: MLX would
        draw it from a state that no checkpoint of ours holds.
        """
        with self._lock:  # the mode is the modules' own, not a thread's
            changed = [module for module in self._modules if module.training != differentiated]
            for module in changed:
                module._set_training_mode(differentiated)
            try:
                yield
            finally:
                for module in changed:
                    module._set_training_mode(not differentiated)


def count_parameters(model: Module) -> int:
    """How many numbers a model has; packed weights count as the numbers they stand for."""
    total = 0
    for _, module in model.named_modules():  # type: ignore[no-untyped-call]
        packed = module.get("scales") is not None and hasattr(module, "bits")
        for name, value in module.items():
            if isinstance(value, mx.array) and not name.startswith("_"):
                if not packed or name == "bias":
                    total += value.size
                elif name == "weight":
                    total += value.size * 32 // int(module.bits)
    return total

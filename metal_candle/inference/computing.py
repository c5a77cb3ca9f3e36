"""How a model computes while it generates: without dropout, in a bounded part of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from ..tensor.cache_limit import bounded_cache
from ..training.lora import LoRALayer

# Layers in training mode that are out of it meanwhile, each with how many compute with it: several streams may.
_without_dropout: WeakKeyDictionary[LoRALayer, int] = WeakKeyDictionary()
_lock = Lock()


@contextmanager
def computing(model: Any) -> Iterator[None]:
    """MLX's cache of freed memory is bounded inside, and dropout of what acts in the model is off.

    An adapter that was just trained may still be in training mode; it is again afterwards.
    """
    acting = model.acting() if hasattr(model, "acting") else []
    drop = [layer for layer in acting if isinstance(layer, LoRALayer) and layer.config().dropout]
    layers = _leave_training(drop)
    try:
        with bounded_cache():
            yield
    finally:
        _enter_training(layers)


def _leave_training(layers: list[LoRALayer]) -> list[LoRALayer]:
    with _lock:
        left = [layer for layer in layers if layer in _without_dropout or layer.is_training()]
        for layer in left:
            layer.set_training(False)
            _without_dropout[layer] = _without_dropout.get(layer, 0) + 1
    return left


def _enter_training(layers: list[LoRALayer]) -> None:
    with _lock:
        for layer in layers:
            _without_dropout[layer] -= 1
            if not _without_dropout[layer]:
                del _without_dropout[layer]
                layer.set_training(True)

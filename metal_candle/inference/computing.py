"""How a model computes while it generates: without dropout, in a bounded part of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..tensor.cache_limit import bounded_cache
from ..training.lora import LoRALayer


@contextmanager
def computing(model: Any) -> Iterator[None]:
    """MLX's cache of freed memory is bounded inside, and dropout of what acts in the model is off.

    An adapter that was just trained may still be in training mode; it is again afterwards.
    """
    acting = model.acting() if hasattr(model, "acting") else []
    training = [layer for layer in acting if isinstance(layer, LoRALayer) and layer.is_training()]
    for layer in training:
        layer.set_training(False)
    try:
        with bounded_cache():
            yield
    finally:
        for layer in training:
            layer.set_training(True)

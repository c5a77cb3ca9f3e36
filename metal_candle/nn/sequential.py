"""Layers one after the other. candle: ``candle_nn::sequential``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..error import ArgumentTypeError
from ..error.text import described
from ..graph.scopes import scoped
from .func import Func
from .module import Module, T


class Sequential(Module):
    """Layers one after the other; those that act differently while training do so by its mode.

    candle: ``candle_nn::Sequential``.
    """

    def __init__(self) -> None:
        self._layers: list[Module] = []

    def add(self, layer: Module) -> Sequential:
        """Append a layer; returns itself. Raises ``ArgumentTypeError`` for what has no ``forward``."""
        if not hasattr(layer, "forward"):
            raise ArgumentTypeError(f"add: got {described(layer)}; takes a module (add_fn takes a function)")
        self._layers.append(layer)
        return self

    def add_fn(self, f: Callable[[Any], Any]) -> Sequential:
        """Append a function; returns itself."""
        return self.add(Func(f))

    def forward(self, xs: T) -> T:
        """The last layer's output; what it is given where there are no layers."""
        for layer in self._layers:
            xs = layer.forward(xs)
        return xs

    @scoped
    def forward_all(self, xs: T) -> list[T]:
        """Every layer's output."""
        outputs = []
        for layer in self._layers:
            xs = layer.forward(xs)
            outputs.append(xs)
        return outputs

    def len(self) -> int:
        """The number of layers; ``len(layers)`` in Python."""
        return len(self._layers)

    def is_empty(self) -> bool:
        """Whether there are no layers."""
        return not self._layers

    def __len__(self) -> int:
        return len(self._layers)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Module]:
        return iter(self._layers)

    def __getitem__(self, place: int) -> Module:
        return self._layers[place]


def seq() -> Sequential:
    """An empty ``Sequential``. candle: ``candle_nn::seq``."""
    return Sequential()

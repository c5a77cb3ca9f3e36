"""``Module``: anything with a ``forward``. candle: ``candle_core::Module``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, TypeVar

from ..graph.scopes import scoped
from ..tensor.base import TensorBase

T = TypeVar("T", bound=TensorBase)


class Module:
    """Base of layers: calling one is its ``forward``. Lazy input gives lazy output, eager gives eager.

    What ``forward`` records belongs to the layer in pictures of the graph, under the name its parent has it by.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        forward: Any = cls.forward
        if isinstance(forward, FunctionType) and forward is not Module.forward and not hasattr(forward, "is_scoped"):
            cls.forward = scoped(forward)  # type: ignore[method-assign]

    def forward(self, xs: T) -> T:
        """The layer's output."""
        raise AssertionError(f"{type(self).__name__} defines no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            return self.forward(args[0])  # the usual call; passing a dict on, even an empty one, takes twice as long
        return self.forward(*args, **kwargs)


class Func(Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def forward(self, xs: T) -> T:
        """The function's value."""
        result: T = self._function(xs)
        return result


class Sequential(Module):
    """Layers one after the other. candle: ``candle_nn::Sequential``."""

    def __init__(self) -> None:
        self._layers: list[Module] = []

    def add(self, layer: Module) -> Sequential:
        """Append a layer; returns itself."""
        self._layers.append(layer)
        return self

    def add_fn(self, function: Callable[[Any], Any]) -> Sequential:
        """Append a function; returns itself."""
        return self.add(Func(function))

    def forward(self, xs: T) -> T:
        """The last layer's output."""
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

    def is_empty(self) -> bool:
        """Whether there are no layers."""
        return not self._layers

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._layers)


def seq() -> Sequential:
    """An empty ``Sequential``."""
    return Sequential()

"""``Module`` and ``ModuleT``: anything with a ``forward``. candle: ``candle_core::Module``, ``ModuleT``."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeVar

from ..constructors import New
from ..error import ArgumentTypeError
from ..error.text import described
from ..graph.node import current_trace
from ..graph.scopes import contents, scoped
from ..tensor.arguments import boolean
from ..tensor.base import TensorBase
from ..tensor.eager import Tensor
from .picture import picture

T = TypeVar("T", bound=TensorBase)
M = TypeVar("M", bound="Module")


class Module(New):
    """Base of layers: calling one is its ``forward``. Lazy input gives lazy output, eager gives eager.

    What ``forward`` records belongs to the layer in pictures of the graph, under the name its parent has it by.

    A module is in training mode until ``eval()``. The mode reaches every module that it holds as an attribute, or in a
    list or dict that is one; ``Dropout`` and ``BatchNorm`` act by it. candle has no mode: there ``forward_t`` is told
    of it, which works here, too.
    """

    _training = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("forward", "forward_t"):
            method = getattr(cls, name)
            if isinstance(method, FunctionType) and not (
                method is Module.__dict__[name] or hasattr(method, "is_scoped")
            ):
                setattr(cls, name, scoped(method))

    def forward(self, xs: T) -> T:
        """The layer's output."""
        raise AssertionError(f"{type(self).__name__} defines no forward")

    def forward_t(self, xs: T, train: bool) -> T:
        """``forward`` in training mode or not, whatever the mode is. candle: ``ModuleT::forward_t``."""
        with self._in_mode(train):
            return self.forward(xs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            try:
                # The usual call; passing a dict on, even an empty one, takes twice as long.
                return self.forward(args[0])
            except AttributeError as error:
                self._expect_tensor(args[0], error)
                raise
        return self.forward(*args, **kwargs)

    def __repr__(self) -> str:
        return picture(self, Module)

    def _expect_tensor(self, given: object, error: AttributeError) -> None:
        """Raise where it is an array or a list that lacks what tensors have: not in the words of a private name."""
        if error.obj is given and not isinstance(given, TensorBase) and error.name and hasattr(Tensor, error.name):
            raise ArgumentTypeError(f"{type(self).__name__}: got {described(given)}; takes a tensor") from error

    # --- training mode ------------------------------------------------------------------------

    def train(self: M, mode: bool = True) -> M:
        """Put it and every module in it into training mode, or out of it; returns itself."""
        mode = boolean("train", "mode", mode)
        for _, module in self.named_modules():
            module._training = mode
        return self

    def eval(self: M) -> M:
        """``train(False)``: dropout passes on what it gets, batch norm uses its running statistics."""
        return self.train(False)

    def is_training(self) -> bool:
        """Whether it is in training mode. A compiled function that asks has a plan for either answer."""
        self._asked()
        return self._training

    def _mode(self) -> Hashable:
        """What the plans of compiled functions that asked depend on."""
        return self._training

    def _asked(self) -> None:
        """Say to a trace, if there is one, that what it records depends on ``_mode()``."""
        trace = current_trace()
        if trace is not None:
            trace.asked[id(self)] = weakref.ref(self)

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Itself, under the name "", and every module in it, by path: "layers.0.mlp". Shared ones come once."""
        seen: set[int] = set()
        stack: list[tuple[str, object]] = [("", self)]
        while stack:
            path, place = stack.pop()
            if id(place) in seen:
                continue
            seen.add(id(place))
            if isinstance(place, Module):
                yield path, place
            for name, value in reversed(contents(place)):
                if isinstance(value, (Module, list, tuple, dict)):
                    stack.append((f"{path}.{name}" if path else name, value))

    @contextmanager
    def _in_mode(self, train: bool) -> Iterator[None]:
        others = [module for _, module in self.named_modules() if module._training is not train]
        for module in others:
            module._training = train
        try:
            yield
        finally:
            for module in others:
                module._training = not train


class ModuleT(Module):
    """Base of modules that define ``forward_t(xs, train)``; their ``forward`` is that in their own mode.

    candle: ``candle_core::ModuleT``.
    """

    def forward(self, xs: T) -> T:
        """``forward_t`` in the mode that ``train()`` and ``eval()`` set."""
        return self.forward_t(xs, self.is_training())

    def forward_t(self, xs: T, train: bool) -> T:
        """The layer's output, in training or not."""
        raise AssertionError(f"{type(self).__name__} defines no forward_t")

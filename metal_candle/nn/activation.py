"""Activations as values and as modules. candle: ``candle_nn::Activation``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ..error import ArgumentTypeError, ArgumentValueError
from ..error.text import described
from ..graph.operations.counts import number
from . import ops
from .module import Module, T


class Activation(Module):
    """One of candle's activations, a module that has no weights and is compared by content.

    Those without a parameter are ready: ``Activation.Relu(xs)``. The others are made: ``Activation.Elu(1.5)(xs)``,
    ``Activation.LeakyRelu(0.1)(xs)``. ``Gelu``, the default, is the erf form, ``NewGelu`` and ``GeluPytorchTanh`` the
    tanh form; ``Swiglu`` halves the last dim.
    """

    Gelu: ClassVar[Activation]
    NewGelu: ClassVar[Activation]
    Relu: ClassVar[Activation]
    Relu2: ClassVar[Activation]
    Relu6: ClassVar[Activation]
    Silu: ClassVar[Activation]
    Sigmoid: ClassVar[Activation]
    HardSigmoid: ClassVar[Activation]
    Swiglu: ClassVar[Activation]
    Swish: ClassVar[Activation]
    Mish: ClassVar[Activation]
    HardSwish: ClassVar[Activation]
    GeluPytorchTanh: ClassVar[Activation]

    def __init__(self, variant: str, parameter: float | None = None) -> None:
        if variant not in (_PLAIN if parameter is None else _WITH_PARAMETER):
            raise ArgumentValueError(
                f"Activation: got {described(variant)}; takes Activation.Gelu and so on, and from_name the names of a "
                "configuration"
            )
        self._variant, self._parameter = variant, parameter

    @staticmethod
    def Elu(alpha: float) -> Activation:
        """x where it is positive, else alpha · (exp(x) - 1)."""
        return Activation("Elu", number("Elu", "alpha", alpha))

    @staticmethod
    def LeakyRelu(negative_slope: float) -> Activation:
        """x where it is positive, else negative_slope · x."""
        return Activation("LeakyRelu", number("LeakyRelu", "negative_slope", negative_slope))

    @classmethod
    def default(cls) -> Activation:
        """``Activation.Gelu``."""
        return Activation.Gelu

    @staticmethod
    def from_name(value: Any) -> Activation:
        """What a model's configuration says: "gelu", "gelu_new", "silu" …, ``{"elu": 1.0}`` or ``{"leakyrelu": 0.1}``.

        The names are those that candle reads. Raises ``ArgumentValueError`` with all of them for any other name,
        ``ArgumentTypeError`` for what is neither text nor a dict and for a parameter that is no number.
        """
        if isinstance(value, Activation):
            return value
        if isinstance(value, str) and value in _NAMES:
            return _NAMES[value]
        if isinstance(value, dict) and len(value) == 1:
            ((name, parameter),) = value.items()
            for variant in _WITH_PARAMETER:
                if variant.lower() == name:
                    return Activation(variant, number("activation", name, parameter))
        if isinstance(value, dict):
            names = ", ".join(map(described, value)) or "nothing"
            raise ArgumentValueError(f"activation: got a dict of {names}; {_TAKES}")
        kind = ArgumentValueError if isinstance(value, str) else ArgumentTypeError
        raise kind(f"activation: got {described(value)}; {_TAKES}")

    def name(self) -> str:
        """Its name in a configuration that candle writes: "gelu", "newgelu", "elu" …"""
        return self._variant.lower()

    def forward(self, xs: T) -> T:
        """The activation of each element, of the same shape; ``Swiglu`` halves the last dim.

        Raises ``UnsupportedDTypeForOpError`` for integers, but for ``Relu``, ``Relu2`` and ``Relu6``.
        """
        result: T
        if self._parameter is None:
            result = _PLAIN[self._variant](xs)
        else:
            result = _WITH_PARAMETER[self._variant](xs, self._parameter)
        return result

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Activation) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[str, float | None]:
        return self._variant, self._parameter

    def __repr__(self) -> str:
        return f"Activation.{self._variant}" + ("" if self._parameter is None else f"({self._parameter})")


_PLAIN: dict[str, Callable[..., Any]] = {
    "Gelu": lambda xs: xs.gelu_erf(),
    "NewGelu": lambda xs: xs.gelu(),
    "Relu": lambda xs: xs.relu(),
    "Relu2": lambda xs: xs.relu().sqr(),
    "Relu6": lambda xs: xs.clamp(0.0, 6.0),
    "Silu": ops.silu,
    "Sigmoid": ops.sigmoid,
    "HardSigmoid": ops.hard_sigmoid,
    "Swiglu": ops.swiglu,
    "Swish": ops.silu,
    "Mish": ops.mish,
    "HardSwish": lambda xs: xs.mul(ops.hard_sigmoid(xs)),
    "GeluPytorchTanh": lambda xs: xs.gelu(),
}
_WITH_PARAMETER: dict[str, Callable[..., Any]] = {
    "Elu": lambda xs, alpha: xs.elu(alpha),
    "LeakyRelu": ops.leaky_relu,
}

for _variant in _PLAIN:
    setattr(Activation, _variant, Activation(_variant))

_NAMES: dict[str, Activation] = {variant.lower(): getattr(Activation, variant) for variant in _PLAIN}
_NAMES |= {"gelu_new": Activation.NewGelu, "gelu_pytorch_tanh": Activation.GeluPytorchTanh}
_TAKES = f"takes {', '.join(sorted(_NAMES))}, {{'elu': alpha}} or {{'leakyrelu': slope}}"

"""How a variable starts. candle: ``candle_nn::init``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from ..constructors import Default
from ..device import DeviceLike
from ..dtype import DTypeLike
from ..error import ArgumentTypeError, ArgumentValueError
from ..error.text import described
from ..graph.operations.counts import number
from ..shape import Shape, ShapeLike
from ..tensor.var import Var


class NormalOrUniform(Enum):
    """The distribution of ``Init.Kaiming``. candle: ``init::NormalOrUniform``."""

    Normal = "normal"
    Uniform = "uniform"


class FanInOut(Enum):
    """Which of a weight's two fans ``Init.Kaiming`` keeps the variance of. candle: ``init::FanInOut``."""

    FanIn = "fan_in"
    FanOut = "fan_out"

    def for_shape(self, shape: ShapeLike) -> int:
        """The fan of a weight ``(out, in, kernel …)``: in, or out, times the kernel's sizes.

        Of fewer than two dims the fan in is 1, the fan out the first size.
        """
        sizes = Shape.of(shape)
        kernel = math.prod(sizes[2:])
        if self is FanInOut.FanIn:
            return sizes[1] * kernel if len(sizes) > 1 else 1
        return sizes[0] * kernel if sizes else 1


@dataclass(frozen=True)
class NonLinearity:
    """What follows the layer: ``NonLinearity.ReLU``, ``Linear``, ``Sigmoid``, ``Tanh``, ``SELU``, or
    ``NonLinearity.ExplicitGain(g)``. candle: ``init::NonLinearity``.
    """

    variant: str
    value: float

    ReLU: ClassVar[NonLinearity]
    Linear: ClassVar[NonLinearity]
    Sigmoid: ClassVar[NonLinearity]
    Tanh: ClassVar[NonLinearity]
    SELU: ClassVar[NonLinearity]

    @staticmethod
    def ExplicitGain(gain: float) -> NonLinearity:
        """A gain of one's own."""
        return NonLinearity("ExplicitGain", number("ExplicitGain", "gain", gain))

    def gain(self) -> float:
        """By what the standard deviation is multiplied: sqrt(2) for ReLU, 5/3 for tanh, 3/4 for SELU, else 1."""
        return self.value


NonLinearity.ReLU = NonLinearity("ReLU", math.sqrt(2.0))
NonLinearity.Linear = NonLinearity("Linear", 1.0)
NonLinearity.Sigmoid = NonLinearity("Sigmoid", 1.0)
NonLinearity.Tanh = NonLinearity("Tanh", 5 / 3)
NonLinearity.SELU = NonLinearity("SELU", 0.75)


@dataclass(frozen=True)
class Init(Default):
    """How a variable starts: ``Init.Const(v)``, ``Init.Randn(mean, stdev)``, ``Init.Uniform(lo, up)`` or
    ``Init.Kaiming(dist, fan, non_linearity)``. ``Init.default()`` is ``Const(0.0)``. candle: ``init::Init``.
    """

    Const: ClassVar[type[Const]]
    Randn: ClassVar[type[Randn]]
    Uniform: ClassVar[type[Uniform]]
    Kaiming: ClassVar[type[Kaiming]]

    @classmethod
    def default(cls) -> Init:
        """Zeros."""
        return ZERO

    def var(self, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike = None) -> Var:
        """A variable that starts so. Raises ``UnsupportedDTypeForOpError`` for random integers."""
        raise AssertionError(f"{type(self).__name__} defines no var")


@dataclass(frozen=True)
class Const(Init):
    """One value everywhere."""

    value: float

    def var(self, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike = None) -> Var:
        """A constant variable."""
        return Var.full(self.value, shape, device, dtype)


@dataclass(frozen=True)
class Randn(Init):
    """Normal."""

    mean: float
    stdev: float

    def var(self, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike = None) -> Var:
        """A normal variable."""
        return Var.randn(self.mean, self.stdev, shape, device, dtype)


@dataclass(frozen=True)
class Uniform(Init):
    """Uniform in ``[lo, up)``."""

    lo: float
    up: float

    def var(self, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike = None) -> Var:
        """A uniform variable."""
        return Var.rand(self.lo, self.up, shape, device, dtype)


@dataclass(frozen=True)
class Kaiming(Init):
    """Standard deviation gain / sqrt(fan), normal, or uniform within sqrt(3) times that.

    He et al. 2015, https://arxiv.org/abs/1502.01852. Raises ``ArgumentTypeError`` for arguments of other types.
    """

    dist: NormalOrUniform
    fan: FanInOut
    non_linearity: NonLinearity

    def __post_init__(self) -> None:
        kinds = {"dist": NormalOrUniform, "fan": FanInOut, "non_linearity": NonLinearity}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise ArgumentTypeError(f"kaiming: got {name} {described(value)}; takes a {kind.__name__}")

    def var(self, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike = None) -> Var:
        """A random variable. Raises ``ArgumentValueError`` for a fan of 0, which no standard deviation belongs to."""
        sizes = Shape.of(shape)
        fan = self.fan.for_shape(sizes)
        if fan == 0 and sizes.elem_count():
            raise ArgumentValueError(f"kaiming: got shape {list(sizes)}; takes one whose {self.fan.value} is not 0")
        stdev = self.non_linearity.gain() / math.sqrt(max(fan, 1))
        if self.dist is NormalOrUniform.Normal:
            return Var.randn(0.0, stdev, sizes, device, dtype)
        bound = math.sqrt(3.0) * stdev
        return Var.rand(-bound, bound, sizes, device, dtype)


Init.Const, Init.Randn, Init.Uniform, Init.Kaiming = Const, Randn, Uniform, Kaiming

ZERO = Const(0.0)
ONE = Const(1.0)
DEFAULT_KAIMING_NORMAL = Kaiming(NormalOrUniform.Normal, FanInOut.FanIn, NonLinearity.ReLU)
DEFAULT_KAIMING_UNIFORM = Kaiming(NormalOrUniform.Uniform, FanInOut.FanIn, NonLinearity.ReLU)


def over_root(n: int) -> Init:
    """Uniform in ±1/sqrt(n), how the biases of layers with ``n`` inputs start; zeros for none."""
    if n == 0:
        return ZERO
    bound = 1 / math.sqrt(n)
    return Uniform(-bound, bound)

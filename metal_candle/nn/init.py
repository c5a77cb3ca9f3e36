"""How a variable starts. candle: ``candle_nn::init``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..device import DeviceLike
from ..dtype import DTypeLike
from ..shape import Shape, ShapeLike
from ..tensor.var import Var


@dataclass(frozen=True)
class Init:
    """Base of the starts, which are its attributes: ``Init.Const(v)``, ``Init.Randn(mean, stdev)`` …"""

    def var(self, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike) -> Var:
        """A variable that starts so."""
        raise AssertionError(f"{type(self).__name__} defines no var")


@dataclass(frozen=True)
class Const(Init):
    """One value everywhere."""

    value: float

    def var(self, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike) -> Var:
        """A constant variable."""
        ones = Var.ones(shape, dtype, device)
        return Var.from_tensor(ones.detach().affine(0.0, self.value))


@dataclass(frozen=True)
class Randn(Init):
    """Normal."""

    mean: float
    stdev: float

    def var(self, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike) -> Var:
        """A normal variable."""
        return Var.randn(self.mean, self.stdev, shape, device, dtype)


@dataclass(frozen=True)
class Uniform(Init):
    """Uniform in ``[lo, up)``."""

    lo: float
    up: float

    def var(self, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike) -> Var:
        """A uniform variable."""
        return Var.rand(self.lo, self.up, shape, device, dtype)


@dataclass(frozen=True)
class Kaiming(Init):
    """Normal with std sqrt(2 / fan_in), for ReLU: He et al. 2015, https://arxiv.org/abs/1502.01852."""

    def var(self, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike) -> Var:
        """A normal variable scaled by its fan-in, which is the product of all dims but the first."""
        sizes = Shape.of(shape)
        fan_in = math.prod(sizes[1:]) if len(sizes) > 1 else 1
        return Var.randn(0.0, math.sqrt(2.0 / max(fan_in, 1)), sizes, device, dtype)


ZERO = Const(0.0)
ONE = Const(1.0)
DEFAULT_KAIMING_NORMAL = Kaiming()
for _name, _variant in {"Const": Const, "Randn": Randn, "Uniform": Uniform, "Kaiming": Kaiming}.items():
    setattr(Init, _name, _variant)

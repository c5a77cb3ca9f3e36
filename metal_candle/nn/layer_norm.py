"""Normalisation over the last dim. candle: ``candle_nn::layer_norm``."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from ..constructors import Default
from ..error import ArgumentTypeError
from ..error.text import described
from ..graph.operations.binary import Add
from ..graph.operations.counts import epsilon
from ..graph.operations.norm import LayerNorm as LayerNormOperation
from ..graph.operations.norm import WeightedRMSNorm
from ..tensor.arguments import boolean, expect_tensor
from ..tensor.eager import Tensor
from .init import ONE, ZERO
from .module import Module, T
from .var_builder import VarBuilder


@dataclass(frozen=True)
class LayerNormConfig(Default):
    """What ``layer_norm`` makes: what is added to the variance, whether the mean is removed, whether there is a bias.

    candle: ``candle_nn::LayerNormConfig``.
    """

    eps: float = 1e-5
    remove_mean: bool = True
    affine: bool = True


class LayerNorm(Module):
    """``(x - mean) / sqrt(variance + eps) · weight + bias`` over the last dim, which weight and bias ``(n,)`` have.

    The variance is biased; halves are computed in float32. Without removing the mean it is RMS norm, with or without a
    bias. Ba et al. 2016, https://arxiv.org/abs/1607.06450. candle: ``candle_nn::LayerNorm``, whose fused
    form, unlike this one, passes no gradient on.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        expect_tensor("layer_norm", weight, "weight")
        if bias is not None:
            expect_tensor("layer_norm", bias, "bias")
        self._weight, self._bias, self._remove_mean = weight, bias, True
        self._eps = epsilon("layer_norm", eps)

    @classmethod
    def new_no_bias(cls, weight: Tensor, eps: float) -> LayerNorm:
        """A layer without bias."""
        return cls(weight, None, eps)

    @classmethod
    def rms_norm(cls, weight: Tensor, eps: float) -> LayerNorm:
        """A layer that does not remove the mean, without bias."""
        return _made(weight, None, eps, False)

    def weight(self) -> Tensor:
        """The weight, ``(n,)``."""
        return self._weight

    def bias(self) -> Tensor | None:
        """The bias, ``(n,)``, if there is one."""
        return self._bias

    def eps(self) -> float:
        """What is added to the variance."""
        return self._eps

    def remove_mean(self) -> bool:
        """Whether the mean is removed."""
        return self._remove_mean

    def forward(self, xs: T) -> T:
        """The normalised tensor, of the same shape and dtype.

        Raises ``ShapeMismatchBinaryOpError`` where the last dim is not n, ``DTypeMismatchError`` where dtypes differ.
        """
        weight = xs._lift(self._weight)
        bias = () if self._bias is None else (xs._lift(self._bias),)
        if self._remove_mean:
            return xs._record(LayerNormOperation(self._eps), weight, *bias)
        normed = xs._record(WeightedRMSNorm(self._eps), weight)
        return normed._record(Add(), *bias) if bias else normed


def _made(weight: Tensor, bias: Tensor | None, eps: float, remove_mean: bool) -> LayerNorm:
    layer = LayerNorm(weight, bias, eps)
    layer._remove_mean = remove_mean
    return layer


def layer_norm(size: int, config: LayerNormConfig | float, vb: VarBuilder) -> LayerNorm:
    """A layer from ``vb``'s ``weight`` and ``bias``; new ones start at ones and zeros. A number is taken as eps.

    Without ``affine`` there is no bias, but still a weight. Raises ``ArgumentTypeError`` for another config.
    """
    config = layer_norm_config(config)
    affine = boolean("layer_norm", "affine", config.affine)
    remove_mean = boolean("layer_norm", "remove_mean", config.remove_mean)
    weight = vb.get_with_hints((size,), "weight", ONE)
    bias = vb.get_with_hints((size,), "bias", ZERO) if affine else None
    return _made(weight, bias, config.eps, remove_mean)


def layer_norm_config(config: LayerNormConfig | float) -> LayerNormConfig:
    """The config; a number is its eps."""
    if isinstance(config, LayerNormConfig):
        return config
    if not isinstance(config, Real):
        raise ArgumentTypeError(f"layer_norm: got config {described(config)}; takes a LayerNormConfig or eps, a number")
    return LayerNormConfig(float(config))


def layer_norm_no_bias(size: int, eps: float, vb: VarBuilder) -> LayerNorm:
    """A layer without bias from ``vb``'s ``weight``; a new one starts at ones."""
    return layer_norm(size, LayerNormConfig(eps, affine=False), vb)


class RmsNorm(Module):
    """``x / sqrt(mean(x²) + eps) · weight`` over the last dim, which the weight ``(n,)`` has.

    Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467. candle: ``candle_nn::RmsNorm``. ``forward`` is
    differentiable, unlike candle's fused one.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        expect_tensor("rms_norm", weight, "weight")
        self._weight, self._eps = weight, epsilon("rms_norm", eps)

    def weight(self) -> Tensor:
        """The weight, ``(n,)``."""
        return self._weight

    def eps(self) -> float:
        """What is added to the mean square."""
        return self._eps

    def into_inner(self) -> LayerNorm:
        """The same as a ``LayerNorm`` that does not remove the mean."""
        return LayerNorm.rms_norm(self._weight, self._eps)

    def forward(self, xs: T) -> T:
        """The normalised tensor, of the same shape and dtype. Raises as ``LayerNorm.forward`` does."""
        return xs._record(WeightedRMSNorm(self._eps), xs._lift(self._weight))

    def forward_diff(self, xs: T) -> T:
        """``forward``, which is differentiable. candle: ``RmsNorm::forward_diff``."""
        return self.forward(xs)


def rms_norm(size: int, eps: float, vb: VarBuilder) -> RmsNorm:
    """A layer from ``vb``'s ``weight``; a new one starts at ones."""
    return RmsNorm(vb.get_with_hints((size,), "weight", ONE), eps)

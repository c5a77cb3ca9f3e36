"""Normalisation layers. candle: ``candle_nn::RmsNorm``."""

from __future__ import annotations

from ..graph.operations.norm import WeightedRMSNorm
from ..tensor.eager import Tensor
from .init import ONE
from .module import Module, T
from .var_builder import VarBuilder


class RmsNorm(Module):
    """``x / sqrt(mean(x²) + eps) · weight`` over the last dim, which the weight ``(n,)`` has.

    Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467. Differentiable, unlike candle's fused one.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight, self._eps = weight, eps

    def weight(self) -> Tensor:
        """The weight, ``(n,)``."""
        return self._weight

    def eps(self) -> float:
        """What is added to the mean square."""
        return self._eps

    def forward(self, xs: T) -> T:
        """The normalised tensor, of the same shape and dtype."""
        return xs._record(WeightedRMSNorm(self._eps), xs._lift(self._weight))


def rms_norm(size: int, eps: float, vb: VarBuilder) -> RmsNorm:
    """A layer from ``vb``'s ``weight``; a new one starts at ones."""
    return RmsNorm(vb.get_with_hints((size,), "weight", ONE), eps)

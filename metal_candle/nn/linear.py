"""Affine layers. candle: ``candle_nn::linear``."""

from __future__ import annotations

from ..graph.operations.binary import Add
from ..graph.operations.linalg import Linear as LinearOperation
from ..tensor.arguments import boolean, expect_tensor
from ..tensor.eager import Tensor
from .init import DEFAULT_KAIMING_NORMAL, over_root
from .module import Module, T
from .var_builder import VarBuilder


class Linear(Module):
    """``x · weightᵀ + bias``: ``(…, in)`` to ``(…, out)``; weight ``(out, in)``, bias ``(out,)`` or none.

    ``x`` may have one dim or more, where candle takes two to four. candle: ``candle_nn::Linear``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        expect_tensor("linear", weight, "weight")
        if bias is not None:
            expect_tensor("linear", bias, "bias")
        self._weight, self._bias = weight, bias

    def weight(self) -> Tensor:
        """The weight, ``(out, in)``."""
        return self._weight

    def bias(self) -> Tensor | None:
        """The bias, ``(out,)``, if there is one."""
        return self._bias

    def forward(self, xs: T) -> T:
        """The product. Raises ``ShapeMismatchBinaryOpError`` where the last dim is not ``in``."""
        product = xs._record(LinearOperation(), xs._lift(self._weight))
        return product if self._bias is None else product._record(Add(), xs._lift(self._bias))


def linear_no_bias(in_dim: int, out_dim: int, vb: VarBuilder) -> Linear:
    """A layer without bias from ``vb``'s ``weight``; a new one starts Kaiming normal.

    candle: ``candle_nn::linear_no_bias``.
    """
    return Linear(vb.get_with_hints((out_dim, in_dim), "weight", DEFAULT_KAIMING_NORMAL))


def linear(in_dim: int, out_dim: int, vb: VarBuilder) -> Linear:
    """A layer from ``vb``'s ``weight`` and ``bias``; a new bias starts uniform in ±1/sqrt(in).

    candle: ``candle_nn::linear``.
    """
    weight = vb.get_with_hints((out_dim, in_dim), "weight", DEFAULT_KAIMING_NORMAL)
    return Linear(weight, vb.get_with_hints((out_dim,), "bias", over_root(in_dim)))


def linear_b(in_dim: int, out_dim: int, bias: bool, vb: VarBuilder) -> Linear:
    """``linear`` or ``linear_no_bias``. candle: ``candle_nn::linear_b``."""
    return linear(in_dim, out_dim, vb) if boolean("linear_b", "bias", bias) else linear_no_bias(in_dim, out_dim, vb)

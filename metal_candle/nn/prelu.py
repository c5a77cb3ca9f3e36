"""A leaky relu whose slope is trained. candle: ``candle_nn::PReLU``."""

from __future__ import annotations

from ..error import ShapeMismatchError
from ..graph.operations.piecewise import PRelu
from ..tensor.arguments import expect_tensor
from ..tensor.eager import Tensor
from .init import Const
from .module import Module, T
from .var_builder import VarBuilder


class PReLU(Module):
    """x where it is positive, else weight · x: one weight, or one for each channel, which are dim 1.

    He et al. 2015, https://arxiv.org/abs/1502.01852.
    """

    def __init__(self, weight: Tensor, is_scalar: bool) -> None:
        expect_tensor("prelu", weight, "weight")
        self._weight, self._is_scalar = weight, is_scalar

    def weight(self) -> Tensor:
        """The weight: of one element, or ``(channels,)``."""
        return self._weight

    def is_scalar(self) -> bool:
        """Whether one weight is for all channels."""
        return self._is_scalar

    def forward(self, xs: T) -> T:
        """The activation of each element, of the same shape.

        A weight of the tensor's own shape is taken element by element. Raises ``ShapeMismatchError`` where the size of
        dim 1 is not the number of weights, ``ShapeMismatchBinaryOpError`` for other numbers of elements and
        ``DTypeMismatchBinaryOpError`` for another dtype.
        """
        weight = xs._lift(self._weight)
        if self._is_scalar:
            weight = weight.reshape(())  # type: ignore[attr-defined]
        elif xs.shape != weight.shape and xs.rank >= 2:
            channels, weights = xs.dim(1), weight.elem_count()
            if channels != weights:
                raise ShapeMismatchError(
                    f"prelu: got {channels} channels in dim 1 of {tuple(xs.shape)}; takes {weights}, as weights"
                )
            weight = weight.reshape((weights, *[1] * (xs.rank - 2)))  # type: ignore[attr-defined]
        return xs._record(PRelu(), weight)


def prelu(num_channels: int | None, vb: VarBuilder) -> PReLU:
    """A layer from ``vb``'s ``weight``, ``(num_channels,)``, or ``(1,)`` for ``None``; a new one starts at 0.25."""
    size = 1 if num_channels is None else num_channels
    return PReLU(vb.get_with_hints((size,), "weight", Const(0.25)), num_channels is None)

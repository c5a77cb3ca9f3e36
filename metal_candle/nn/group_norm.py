"""Normalisation over groups of channels. candle: ``candle_nn::group_norm``."""

from __future__ import annotations

import math
from typing import Any

from ..error import ArgumentValueError, ShapeMismatchBinaryOpError, ShapeMismatchError, UnexpectedNumberOfDimsError
from ..graph.operations.counts import epsilon, integer
from ..graph.operations.norm import LayerNorm as LayerNormOperation
from ..tensor.arguments import expect_tensor
from ..tensor.eager import Tensor
from .init import ONE, ZERO
from .module import Module, T
from .var_builder import VarBuilder


class GroupNorm(Module):
    """Channels, dim 1 of ``(b, c, …)``, in groups of neighbours; each group of an example has mean 0 and variance 1.

    Then each channel · weight + bias, both ``(c,)``. The variance is biased; halves are normalised in float32. Wu and
    He 2018, https://arxiv.org/abs/1803.08494. candle: ``candle_nn::GroupNorm``.
    """

    def __init__(self, weight: Tensor, bias: Tensor, num_channels: int, num_groups: int, eps: float) -> None:
        num_groups = integer("group_norm", "num_groups", num_groups)
        num_channels = integer("group_norm", "num_channels", num_channels)
        if num_groups < 1 or num_channels % num_groups:
            raise ArgumentValueError(
                f"group_norm: got {num_groups} groups for {num_channels} channels; takes a number of groups that "
                "divides the channels"
            )
        for name, tensor in (("weight", weight), ("bias", bias)):
            expect_tensor("group_norm", tensor, name)
            if tuple(tensor.shape) != (num_channels,):
                raise ShapeMismatchError(
                    f"group_norm: got {name} of shape {tuple(tensor.shape)}; takes ({num_channels},)"
                )
        self._weight, self._bias = weight, bias
        self._num_channels, self._num_groups, self._eps = num_channels, num_groups, epsilon("group_norm", eps)

    def weight(self) -> Tensor:
        """The weight, ``(c,)``."""
        return self._weight

    def bias(self) -> Tensor:
        """The bias, ``(c,)``."""
        return self._bias

    def num_channels(self) -> int:
        """How many channels it takes."""
        return self._num_channels

    def num_groups(self) -> int:
        """In how many groups they are."""
        return self._num_groups

    def eps(self) -> float:
        """What is added to the variance."""
        return self._eps

    def forward(self, xs: T) -> T:
        """The normalised tensor, of the same shape and dtype.

        Raises ``UnexpectedNumberOfDimsError`` for fewer than three dims, ``ShapeMismatchBinaryOpError`` for other
        channels, ``DTypeMismatchError`` where dtypes differ.
        """
        shape = xs.shape
        if len(shape) < 3:
            raise UnexpectedNumberOfDimsError("group_norm", "3 or more", shape)
        if shape[1] != self._num_channels:
            takes = f"(b, {self._num_channels}, …) and weight ({self._num_channels},)"
            raise ShapeMismatchBinaryOpError("group_norm", shape, self._weight.shape, takes)
        x: Any = xs
        grouped = x.reshape((shape[0], self._num_groups, math.prod(shape[1:]) // self._num_groups))
        normed = grouped._record(LayerNormOperation(self._eps)).reshape(shape)
        row = (self._num_channels, *(1,) * (len(shape) - 2))
        weight, bias = (x._lift(tensor).reshape(row) for tensor in (self._weight, self._bias))
        result: T = normed.broadcast_mul(weight).broadcast_add(bias)
        return result


def group_norm(num_groups: int, num_channels: int, eps: float, vb: VarBuilder) -> GroupNorm:
    """A layer from ``vb``'s ``weight`` and ``bias``; new ones start at ones and zeros.

    candle: ``candle_nn::group_norm``, which has the groups first; ``GroupNorm`` has the channels first.
    """
    weight = vb.get_with_hints((num_channels,), "weight", ONE)
    bias = vb.get_with_hints((num_channels,), "bias", ZERO)
    return GroupNorm(weight, bias, num_channels, num_groups, eps)

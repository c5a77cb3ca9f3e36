"""Records that turn a dim round: reversed, or rotated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...shape import DimLike, DimsLike, resolve_dim, resolve_dims
from ..operation import Gradients, Meta, Operation, Sample
from .counts import integer


class Flip(Operation):
    """The dims' elements in reverse order. Raises ``DimOutOfRangeError``, ``DuplicateDimIndexError``."""

    candle = "Tensor::flip(&self, dims: &[usize]) -> Result<Tensor>"
    methods = ("flip",)
    samples = (
        Sample(((5, 7),), ((1,),)),
        Sample(((2, 3, 4),), ((0, 2),)),
        Sample(((3,),), ((),)),
        Sample(((0, 2),), ((0,),)),
    )
    work = "view"
    dims: tuple[int, ...]

    @classmethod
    def bind(cls, x: Meta, dims: DimsLike) -> Operation:
        return cls(resolve_dims(dims, x.shape, "flip"))

    def infer(self, x: Meta) -> Meta:
        return x

    def lower(self, x: mx.array) -> mx.array:
        return x[tuple(slice(None, None, -1 if i in self.dims else 1) for i in range(x.ndim))] if self.dims else x

    @staticmethod
    def numpy(x: Any, dims: tuple[int, ...]) -> Any:
        return np.flip(x, dims)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (self.lower(cotangent),)


class Roll(Operation):
    """A dim's elements moved on by ``shift``; what leaves at one end enters at the other.

    ``shift`` may be negative. Raises ``DimOutOfRangeError``.
    """

    candle = "Tensor::roll<D: Dim>(&self, shift: i32, dim: D) -> Result<Self>"
    methods = ("roll",)
    samples = (Sample(((5, 7),), (2, 1)), Sample(((2, 3, 4),), (-10, 0)), Sample(((0, 2),), (3, 0)))
    work = "move"
    shift: int
    dim: int

    @classmethod
    def bind(cls, x: Meta, shift: int, dim: DimLike) -> Operation:
        return cls(integer("roll", "shift", shift), resolve_dim(dim, x.shape, "roll"))

    def infer(self, x: Meta) -> Meta:
        return x

    def lower(self, x: mx.array) -> mx.array:
        # A huge shift does not fit MLX's int.
        return mx.roll(x, self.shift % x.shape[self.dim], self.dim) if x.size else x

    @staticmethod
    def numpy(x: Any, shift: int, dim: int) -> Any:
        return np.roll(x, shift, dim)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (Roll(-self.shift, self.dim).lower(cotangent),)

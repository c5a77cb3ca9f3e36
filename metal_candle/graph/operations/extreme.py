"""Records that choose the largest or smallest element of a dim, or its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from ...dtype import DType
from ...shape import DimLike, Shape
from ..operation import Gradients, Meta, Operation, Sample
from .reduce import Reduction, expand, expect_elements, one_dim, reduced


class Extreme(Reduction, abstract=True):
    """Family: the largest or smallest element of one dim, NaN if there is one; every tie gets the full gradient.

    candle skips NaN unless it is the first element. An empty dim raises ``EmptyTensorError``, several dims raise
    ``OnlySingleDimensionError``; ``<name>_all`` goes over all elements.
    """

    samples: ClassVar[tuple[Sample, ...]] = (
        Sample(((5, 123),), ((1,), False)),
        Sample(((5, 123),), ((0,), True)),
        Sample(((2, 3, 4),), ((0, 1, 2), False)),
        Sample(((),), ((), False)),
    )

    @classmethod
    def bind(cls, x: Meta, dim: DimLike) -> Operation:
        return cls((one_dim(dim, x.shape, cls.key),), False)

    @classmethod
    def bind_keepdim(cls, x: Meta, dim: DimLike) -> Operation:
        """The form that keeps the reduced dim as 1."""
        return cls((one_dim(dim, x.shape, cls.key),), True)

    def infer(self, x: Meta) -> Meta:
        expect_elements(self.key, x.shape, self.dims)
        return super().infer(x)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        x = inputs[0]
        best = expand(output, x, self.dims, self.keepdim)
        return ((x == best).astype(cotangent.dtype) * expand(cotangent, x, self.dims, self.keepdim),)


class Max(Extreme):
    """Largest element of one dim, NaN if there is one (candle skips NaN unless it is first); the dtype is kept.

    Every tie gets the full gradient, as in candle. An empty dim raises ``EmptyTensorError``.
    """

    candle = "Tensor::max<D: Dim>(&self, dim: D) -> Result<Tensor>"
    methods = ("max",)
    function = mx.max

    @staticmethod
    def numpy(x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
        return np.max(x, axis=dims, keepdims=keepdim)


class Min(Extreme):
    """Smallest element of one dim, NaN if there is one (candle skips NaN unless it is first); the dtype is kept.

    Every tie gets the full gradient, as in candle. An empty dim raises ``EmptyTensorError``.
    """

    candle = "Tensor::min<D: Dim>(&self, dim: D) -> Result<Tensor>"
    methods = ("min",)
    function = mx.min

    @staticmethod
    def numpy(x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
        return np.min(x, axis=dims, keepdims=keepdim)


class ArgExtreme(Operation, abstract=True):
    """Family: where a dim's largest or smallest element is, U32; of equals the first."""

    differentiable = False
    function: ClassVar[Callable[..., mx.array]]
    samples = (Sample(((5, 123),), (1, False)), Sample(((5, 7),), (0, True)))
    work = "reduction"
    dim: int
    keepdim: bool

    @classmethod
    def bind(cls, x: Meta, dim: DimLike) -> Operation:
        return cls(one_dim(dim, x.shape, cls.key), False)

    @classmethod
    def bind_keepdim(cls, x: Meta, dim: DimLike) -> Operation:
        """The form that keeps the reduced dim as 1."""
        return cls(one_dim(dim, x.shape, cls.key), True)

    @classmethod
    def surface(cls) -> dict[str, Callable[..., Operation]]:
        name = cls.methods[0]
        return {name: cls.bind, f"{name}_keepdim": cls.bind_keepdim}

    def infer(self, x: Meta) -> Meta:
        expect_elements(self.key, x.shape, (self.dim,))
        return Meta(reduced(x.shape, (self.dim,), self.keepdim), DType.U32)

    def lower(self, x: mx.array) -> mx.array:
        if x.size == 0:
            # MLX refuses to look for no elements.
            return mx.zeros(reduced(Shape(x.shape), (self.dim,), self.keepdim), mx.uint32)
        return type(self).function(x, axis=self.dim, keepdims=self.keepdim).astype(mx.uint32)


class Argmax(ArgExtreme):
    """Index of a dim's largest element, U32: the first of equals, the first NaN if there is one."""

    candle = "Tensor::argmax<D: Dim>(&self, dim: D) -> Result<Tensor>"
    methods = ("argmax",)
    function = mx.argmax

    @staticmethod
    def numpy(x: Any, dim: int, keepdim: bool) -> Any:
        return np.argmax(x, axis=dim, keepdims=keepdim)


class Argmin(ArgExtreme):
    """Index of a dim's smallest element, U32: the first of equals, the first NaN if there is one."""

    candle = "Tensor::argmin<D: Dim>(&self, dim: D) -> Result<Tensor>"
    methods = ("argmin",)
    function = mx.argmin

    @staticmethod
    def numpy(x: Any, dim: int, keepdim: bool) -> Any:
        return np.argmin(x, axis=dim, keepdims=keepdim)

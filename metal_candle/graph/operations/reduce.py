"""Records that add up the elements of some dims; the family of all that reduce dims."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from ...error import EmptyTensorError, OnlySingleDimensionError, UnsupportedDTypeForOpError
from ...kernels import accurate_sum
from ...shape import DimLike, DimsLike, Shape, resolve_dim, resolve_dims
from ..operation import Gradients, Meta, Operation, Sample
from ..work import Work
from .elementwise import in_float32


def reduced(shape: Shape, dims: tuple[int, ...], keepdim: bool) -> Shape:
    """The shape without ``dims``, or with 1 in their place."""
    if keepdim:
        return Shape(1 if i in dims else size for i, size in enumerate(shape))
    return Shape(size for i, size in enumerate(shape) if i not in dims)


def expand(array: mx.array, like: mx.array, dims: tuple[int, ...], keepdim: bool) -> mx.array:
    """A reduction's result, or its gradient, repeated along the reduced ``dims`` to the shape of ``like``."""
    return mx.broadcast_to(array if keepdim else mx.expand_dims(array, dims), like.shape)


def one_dim(dim: DimLike, shape: Shape, op: str) -> int:
    """The one dim that ``op`` reduces, from the front. Raises ``OnlySingleDimensionError``, ``DimOutOfRangeError``."""
    if isinstance(dim, (tuple, list)):
        raise OnlySingleDimensionError(op, tuple(dim))
    return resolve_dim(dim, shape, op)


def expect_elements(op: str, shape: Shape, dims: tuple[int, ...]) -> None:
    """Raise ``EmptyTensorError`` if there is nothing to choose an element from."""
    for dim in dims:
        if shape[dim] == 0:
            raise EmptyTensorError(op, shape, dim)


def expect_float(op: str, x: Meta) -> None:
    """Raise ``UnsupportedDTypeForOpError`` for integers, whose result would be no integer."""
    if not x.dtype.is_float_:
        raise UnsupportedDTypeForOpError(op, x.dtype, "a float dtype; to_dtype first")


class Reduction(Operation, abstract=True):
    """Family: some dims reduced, removed or kept as 1; the dtype is kept.

    Offered as ``<name>(dims)``, ``<name>_keepdim(dims)`` and ``<name>_all()``.
    """

    function: ClassVar[Callable[..., mx.array]]
    samples: ClassVar[tuple[Sample, ...]] = (
        Sample(((5, 123),), ((1,), False)),
        Sample(((5, 123),), ((0,), True)),
        Sample(((2, 3, 4),), ((0, 2), False)),
        Sample(((7,),), ((0,), False)),
    )
    work: ClassVar[Work] = "reduction"
    dims: tuple[int, ...]
    keepdim: bool

    @classmethod
    def bind_all(cls, x: Meta) -> Operation:
        """The form over all dims."""
        return cls(tuple(range(len(x.shape))), False)

    @classmethod
    def surface(cls) -> dict[str, Callable[..., Operation]]:
        name = cls.methods[0]
        keepdim: Callable[..., Operation] = cls.bind_keepdim
        return {name: cls.bind, f"{name}_keepdim": keepdim, f"{name}_all": cls.bind_all}

    def infer(self, x: Meta) -> Meta:
        return Meta(reduced(x.shape, self.dims, self.keepdim), x.dtype)

    def lower(self, x: mx.array) -> mx.array:
        if not self.dims:
            return x
        return type(self).function(x, axis=self.dims, keepdims=self.keepdim).astype(x.dtype)


class OverDims(Reduction, abstract=True):
    """Family: reductions of any number of dims at once."""

    @classmethod
    def bind(cls, x: Meta, dims: DimsLike) -> Operation:
        return cls(resolve_dims(dims, x.shape, cls.key), False)

    @classmethod
    def bind_keepdim(cls, x: Meta, dims: DimsLike) -> Operation:
        """The form that keeps the reduced dims as 1."""
        return cls(resolve_dims(dims, x.shape, cls.key), True)

    def changes_nothing(self, x: Meta) -> bool:
        return not self.dims


class Sum(OverDims):
    """Sum over dims, of no dims the tensor itself; the dtype is kept.

    Integers wrap around, also narrow ones; halves are accumulated in float32 and rounded once.
    """

    candle = "Tensor::sum<D: Dims>(&self, sum_dims: D) -> Result<Tensor>"
    methods = ("sum",)
    function = accurate_sum.total

    @staticmethod
    def numpy(x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
        return np.sum(x, axis=dims, keepdims=keepdim)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (expand(cotangent, inputs[0], self.dims, self.keepdim),)


class Mean(OverDims):
    """Mean over dims of a float tensor, NaN of no elements, of no dims the tensor itself.

    Halves are accumulated in float32. Integers raise ``UnsupportedDTypeForOpError`` (candle gives 0).
    """

    candle = "Tensor::mean<D: Dims>(&self, mean_dims: D) -> Result<Tensor>"
    methods = ("mean",)

    @classmethod
    def bind_keepdim(cls, x: Meta, dims: DimsLike) -> Operation:
        return cls(resolve_dims(dims, x.shape, "mean-keepdim"), True)

    def infer(self, x: Meta) -> Meta:
        expect_float("mean", x)
        return super().infer(x)

    @staticmethod
    def function(x: mx.array, axis: tuple[int, ...], keepdims: bool) -> mx.array:
        # The sum of halves may be beyond their range where the mean is not.
        return in_float32(lambda wide: accurate_sum.mean(wide, axis, keepdims), x)

    @staticmethod
    def numpy(x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
        return np.mean(x, axis=dims, keepdims=keepdim)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        count = math.prod(inputs[0].shape[dim] for dim in self.dims)
        return (expand(cotangent / max(count, 1), inputs[0], self.dims, self.keepdim),)

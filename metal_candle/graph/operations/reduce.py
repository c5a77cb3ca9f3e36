"""Records that combine the elements of some dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from ...dtype import DType
from ...error import EmptyTensorError, UnsupportedDTypeForOpError
from ...shape import DimLike, DimsLike, Shape, resolve_dim, resolve_dims
from ..operation import Gradients, Meta, Operation, Sample


def _reduced(shape: Shape, dims: tuple[int, ...], keepdim: bool) -> Shape:
    if keepdim:
        return Shape(1 if i in dims else size for i, size in enumerate(shape))
    return Shape(size for i, size in enumerate(shape) if i not in dims)


def _expand(array: mx.array, like: mx.array, dims: tuple[int, ...], keepdim: bool) -> mx.array:
    return mx.broadcast_to(array if keepdim else mx.expand_dims(array, dims), like.shape)


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
        return Meta(_reduced(x.shape, self.dims, self.keepdim), x.dtype)

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


class Sum(OverDims):
    """Sum over dims; the dtype is kept, halves are accumulated in float32."""

    candle = "Tensor::sum<D: Dims>(&self, sum_dims: D) -> Result<Tensor>"
    methods = ("sum",)
    function = mx.sum

    @staticmethod
    def numpy(x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
        return np.sum(x, axis=dims, keepdims=keepdim)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (_expand(cotangent, inputs[0], self.dims, self.keepdim),)


class Mean(OverDims):
    """Mean over dims of a float tensor."""

    candle = "Tensor::mean<D: Dims>(&self, mean_dims: D) -> Result<Tensor>"
    methods = ("mean",)
    function = mx.mean

    def infer(self, x: Meta) -> Meta:
        if not x.dtype.is_float_:
            raise UnsupportedDTypeForOpError("mean", x.dtype, "a float dtype; to_dtype first")
        return super().infer(x)

    @staticmethod
    def numpy(x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
        return np.mean(x, axis=dims, keepdims=keepdim)


def _expect_elements(op: str, shape: Shape, dims: tuple[int, ...]) -> None:
    """Raise if there is nothing to choose an element from."""
    for dim in dims:
        if shape[dim] == 0:
            raise EmptyTensorError(op, shape, dim)


class Extreme(Reduction, abstract=True):
    """Family: the largest or smallest element of one dim; every tie gets the full gradient."""

    @classmethod
    def bind(cls, x: Meta, dim: DimLike) -> Operation:
        return cls((resolve_dim(dim, x.shape, cls.key),), False)

    @classmethod
    def bind_keepdim(cls, x: Meta, dim: DimLike) -> Operation:
        """The form that keeps the reduced dim as 1."""
        return cls((resolve_dim(dim, x.shape, cls.key),), True)

    def infer(self, x: Meta) -> Meta:
        _expect_elements(self.key, x.shape, self.dims)
        return super().infer(x)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        x = inputs[0]
        best = _expand(output, x, self.dims, self.keepdim)
        return ((x == best).astype(cotangent.dtype) * _expand(cotangent, x, self.dims, self.keepdim),)


class Max(Extreme):
    """Largest element of a dim."""

    candle = "Tensor::max<D: Dim>(&self, dim: D) -> Result<Tensor>"
    methods = ("max",)
    function = mx.max

    @staticmethod
    def numpy(x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
        return np.max(x, axis=dims, keepdims=keepdim)


class Min(Extreme):
    """Smallest element of a dim."""

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
    dim: int
    keepdim: bool

    @classmethod
    def bind(cls, x: Meta, dim: DimLike) -> Operation:
        return cls(resolve_dim(dim, x.shape, cls.key), False)

    @classmethod
    def bind_keepdim(cls, x: Meta, dim: DimLike) -> Operation:
        """The form that keeps the reduced dim as 1."""
        return cls(resolve_dim(dim, x.shape, cls.key), True)

    @classmethod
    def surface(cls) -> dict[str, Callable[..., Operation]]:
        name = cls.methods[0]
        return {name: cls.bind, f"{name}_keepdim": cls.bind_keepdim}

    def infer(self, x: Meta) -> Meta:
        _expect_elements(self.key, x.shape, (self.dim,))
        return Meta(_reduced(x.shape, (self.dim,), self.keepdim), DType.U32)

    def lower(self, x: mx.array) -> mx.array:
        return type(self).function(x, axis=self.dim, keepdims=self.keepdim).astype(mx.uint32)


class Argmax(ArgExtreme):
    """Index of a dim's largest element."""

    candle = "Tensor::argmax<D: Dim>(&self, dim: D) -> Result<Tensor>"
    methods = ("argmax",)
    function = mx.argmax

    @staticmethod
    def numpy(x: Any, dim: int, keepdim: bool) -> Any:
        return np.argmax(x, axis=dim, keepdims=keepdim)


class Argmin(ArgExtreme):
    """Index of a dim's smallest element."""

    candle = "Tensor::argmin<D: Dim>(&self, dim: D) -> Result<Tensor>"
    methods = ("argmin",)
    function = mx.argmin

    @staticmethod
    def numpy(x: Any, dim: int, keepdim: bool) -> Any:
        return np.argmin(x, axis=dim, keepdims=keepdim)


class LogSumExp(Operation):
    """log(sum(exp(x))) over dims, shifted by the maximum; no dims give the tensor back."""

    candle = "Tensor::log_sum_exp<D: Dims>(&self, sum_dims: D) -> Result<Tensor>"
    methods = ("log_sum_exp",)
    samples = (Sample(((5, 123),), ((1,),)), Sample(((2, 3, 4),), ((0, 2),)))
    dims: tuple[int, ...]

    @classmethod
    def bind(cls, x: Meta, dims: DimsLike) -> Operation:
        return cls(resolve_dims(dims, x.shape, "log-sum-exp"))

    def infer(self, x: Meta) -> Meta:
        if not x.dtype.is_float_:
            raise UnsupportedDTypeForOpError("log_sum_exp", x.dtype, "a float dtype; to_dtype first")
        _expect_elements("log_sum_exp", x.shape, self.dims)
        return Meta(_reduced(x.shape, self.dims, False), x.dtype)

    def lower(self, x: mx.array) -> mx.array:
        return mx.logsumexp(x, axis=self.dims) if self.dims else x

    @staticmethod
    def numpy(x: Any, dims: tuple[int, ...]) -> Any:
        return np.log(np.sum(np.exp(x), axis=dims))

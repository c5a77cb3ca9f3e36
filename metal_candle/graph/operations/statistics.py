"""Records that reduce dims of a float tensor to a statistic: variance, log of the sum of exponentials, norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...kernels import accurate_sum, double
from ...shape import DimLike, DimsLike, Shape, resolve_dims
from ..operation import Gradients, Meta, Metas, Operation, Sample
from ..work import Work, elements
from .elementwise import in_float32
from .reduce import expand, expect_elements, expect_float, one_dim, reduced


class Variance(Operation):
    """Unbiased variance over one dim, sum((x - mean)²) / (n - 1); NaN for n = 1. Halves are computed in float32."""

    key = "var"
    candle = "Tensor::var<D: Dim>(&self, dim: D) -> Result<Tensor>"
    methods = ("var",)
    samples = (
        Sample(((5, 123),), (1, False)),
        Sample(((5, 123),), (0, True)),
        Sample(((2, 3, 4),), (1, False)),
        Sample(((7,),), (0, False)),
    )
    work = "reduction"
    flops_per_element = 4
    dim: int
    keepdim: bool

    @classmethod
    def bind(cls, x: Meta, dim: DimLike) -> Operation:
        return cls(one_dim(dim, x.shape, "var"), False)

    @classmethod
    def bind_keepdim(cls, x: Meta, dim: DimLike) -> Operation:
        """The form that keeps the reduced dim as 1."""
        return cls(one_dim(dim, x.shape, "var"), True)

    @classmethod
    def surface(cls) -> dict[str, Callable[..., Operation]]:
        return {"var": cls.bind, "var_keepdim": cls.bind_keepdim}

    def infer(self, x: Meta) -> Meta:
        expect_float("var", x)
        return Meta(reduced(x.shape, (self.dim,), self.keepdim), x.dtype)

    def lower(self, x: mx.array) -> mx.array:
        return in_float32(lambda wide: accurate_sum.variance(wide, self.dim, self.keepdim), x)

    @staticmethod
    def numpy(x: Any, dim: int, keepdim: bool) -> Any:
        return np.var(x, axis=dim, keepdims=keepdim, ddof=1)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        x = inputs[0]

        def slope(wide: mx.array) -> mx.array:
            # By an array, so that a single element, whose variance is NaN, has the gradient NaN too.
            count = mx.array(wide.shape[self.dim] - 1, wide.dtype)
            return (wide - accurate_sum.mean(wide, (self.dim,), True)) * 2 / count

        return (in_float32(slope, x) * expand(cotangent, x, (self.dim,), self.keepdim),)


class LogSumExp(Operation):
    """log(sum(exp(x))) over dims, shifted by the maximum; no dims give the tensor back.

    Where all elements are -inf it is -inf, and its gradient 0 (candle: NaN). Halves are computed in float32.
    """

    candle = "Tensor::log_sum_exp<D: Dims>(&self, sum_dims: D) -> Result<Tensor>"
    methods = ("log_sum_exp",)
    samples = (
        Sample(((5, 123),), ((1,),)),
        Sample(((2, 3, 4),), ((0, 2),)),
        Sample(((2, 3, 4),), ((),)),
        Sample(((7,),), ((0,),)),
    )
    work = "softmax"
    flops_per_element = 4
    dims: tuple[int, ...]

    @classmethod
    def bind(cls, x: Meta, dims: DimsLike) -> Operation:
        return cls(resolve_dims(dims, x.shape, "log-sum-exp"))

    def changes_nothing(self, x: Meta) -> bool:
        return not self.dims

    def infer(self, x: Meta) -> Meta:
        expect_float("log-sum-exp", x)
        expect_elements("log-sum-exp", x.shape, self.dims)
        return Meta(reduced(x.shape, self.dims, False), x.dtype)

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.work, elements(*inputs)

    def lower(self, x: mx.array) -> mx.array:
        return in_float32(lambda wide: accurate_sum.logsumexp(wide, self.dims), x) if self.dims else x

    @staticmethod
    def numpy(x: Any, dims: tuple[int, ...]) -> Any:
        return np.log(np.sum(np.exp(x), axis=dims)) if dims else x

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        if not self.dims:
            return (cotangent,)
        x = inputs[0]
        shift = mx.where(output == -mx.inf, mx.zeros_like(output), output)

        def share(wide: mx.array) -> mx.array:
            return double.exp(wide - expand(shift, wide, self.dims, False))

        return (in_float32(share, x) * expand(cotangent, x, self.dims, False),)


class Norm(Operation):
    """Square root of the sum of all squares, rank 0; its gradient at 0 is NaN, as candle's.

    Halves are computed in float32. Integers raise ``UnsupportedDTypeForOpError``.
    """

    candle = "Tensor::norm(&self) -> Result<Tensor>"
    methods = ("norm",)
    samples = (Sample(((),)), Sample(((1,),)), Sample(((5, 123),)), Sample(((2, 3, 4),)))
    work = "reduction"
    flops_per_element = 2

    def infer(self, x: Meta) -> Meta:
        expect_float("norm", x)
        return Meta(Shape(()), x.dtype)

    def lower(self, x: mx.array) -> mx.array:
        return in_float32(accurate_sum.norm, x)

    @staticmethod
    def numpy(x: Any) -> Any:
        return np.sqrt(np.sum(np.square(x)))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent * (inputs[0] / output),)

"""Records of pools over images: ``(b, c, h, w)``, no padding, rows and columns that fill no window dropped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from ...error import ShapeMismatchError, UnsupportedDTypeForOpError
from ...kernels.pool import avg_pool, avg_pool_vjp, max_pool, max_pool_vjp
from ...kernels.windows import Windows
from ...shape import Shape, ShapeLike, expect_rank
from ..operation import Gradients, Meta, Metas, Operation, Sample
from ..work import Work, elements
from .counts import integer


def _pair(op: str, name: str, value: ShapeLike) -> tuple[int, int]:
    """A number for both dims, or one for each. Raises ``ShapeMismatchError`` unless they are from 1."""
    several = isinstance(value, (tuple, list))
    pair = tuple(integer(op, name, n, 1) for n in (value if several else (value, value)))  # type: ignore[union-attr]
    if len(pair) != 2:
        raise ShapeMismatchError(f"{op}: got {name} {value!r}; takes an integer, or two, for height and width")
    return pair[0], pair[1]


class Pool2d(Operation, abstract=True):
    """Family: one number for each window of an image."""

    samples: ClassVar[tuple[Sample, ...]] = (
        Sample(((2, 3, 4, 6),), ((2, 3), (2, 3))),
        Sample(((1, 2, 5, 7),), ((2, 2), (2, 2))),
        Sample(((1, 2, 5, 6),), ((3, 2), (1, 3))),
        Sample(((2, 1, 6, 5),), ((3, 3), (2, 2))),
        Sample(((0, 2, 3, 3),), ((2, 2), (1, 1))),
    )
    kernel_size: tuple[int, int]
    stride: tuple[int, int]

    @classmethod
    def bind(cls, x: Meta, sz: ShapeLike) -> Operation:
        pair = _pair(cls.key, "sz", sz)
        return cls(pair, pair)

    @classmethod
    def bind_with_stride(cls, x: Meta, kernel_size: ShapeLike, stride: ShapeLike) -> Operation:
        """The form whose windows do not lie side by side."""
        return cls(_pair(cls.key, "kernel_size", kernel_size), _pair(cls.key, "stride", stride))

    @classmethod
    def surface(cls) -> dict[str, Callable[..., Operation]]:
        return {cls.key: cls.bind, f"{cls.key}_with_stride": cls.bind_with_stride}

    def _windows(self) -> Windows:
        return Windows(self.kernel_size, self.stride, (1, 1), (0, 0))

    def infer(self, x: Meta) -> Meta:
        expect_rank(x.shape, 4, self.key)
        count = self._windows().count(tuple(x.shape[2:]))
        if min(count) < 1:
            raise ShapeMismatchError(
                f"{self.key}: got shape {tuple(x.shape)} and windows of {self.kernel_size}; "
                "takes windows no larger than (h, w)"
            )
        return Meta(Shape.of((*x.shape[:2], *count)), x.dtype)

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.work, elements(output) * math.prod(self.kernel_size)


def _seen(x: Any, kernel_size: tuple[int, int], stride: tuple[int, int]) -> Any:
    """The windows as NumPy's view: ``(b, c, h', w', kh, kw)``."""
    return np.lib.stride_tricks.sliding_window_view(x, kernel_size, axis=(2, 3))[:, :, :: stride[0], :: stride[1]]


class AvgPool2d(Pool2d):
    """The mean of each window of ``(b, c, h, w)``: ``(b, c, ⌊(h - kh) / sh⌋ + 1, ⌊(w - kw) / sw⌋ + 1)``.

    ``avg_pool2d(sz)`` takes windows side by side, ``avg_pool2d_with_stride`` any; sizes are an int or (height, width).
    Float dtypes, halves added up in float32. Differentiable for every stride; candle's only where it is the window's
    size. A window larger than the image raises ``ShapeMismatchError``.
    """

    candle = "Tensor::avg_pool2d<T: ToUsize2>(&self, sz: T) -> Result<Self>"
    methods = ("avg_pool2d", "avg_pool2d_with_stride")

    def infer(self, x: Meta) -> Meta:
        if not x.dtype.is_float_:
            raise UnsupportedDTypeForOpError(self.key, x.dtype, "a float dtype; to_dtype first")
        return super().infer(x)

    def lower(self, x: mx.array) -> mx.array:
        return avg_pool(x, self._windows())

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (avg_pool_vjp(cotangent, inputs[0].shape[2:], self._windows()),)

    @staticmethod
    def numpy(x: Any, kernel_size: tuple[int, int], stride: tuple[int, int]) -> Any:
        return _seen(x, kernel_size, stride).mean(axis=(-2, -1))


class MaxPool2d(Pool2d):
    """The largest element of each window of ``(b, c, h, w)``: ``(b, c, ⌊(h - kh) / sh⌋ + 1, ⌊(w - kw) / sw⌋ + 1)``.

    ``max_pool2d(sz)`` takes windows side by side, ``max_pool2d_with_stride`` any; sizes are an int or (height, width).
    Every dtype; NaN if the window has one. The gradient goes to the first of a window's largest elements, row by row,
    for every stride; candle's divides it by the window's size, and exists only where the stride is that size. A
    window larger than the image raises ``ShapeMismatchError``.
    """

    candle = "Tensor::max_pool2d<T: ToUsize2>(&self, sz: T) -> Result<Self>"
    methods = ("max_pool2d", "max_pool2d_with_stride")

    def lower(self, x: mx.array) -> mx.array:
        return max_pool(x, self._windows())

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (max_pool_vjp(cotangent, inputs[0], output, self._windows()),)

    @staticmethod
    def numpy(x: Any, kernel_size: tuple[int, int], stride: tuple[int, int]) -> Any:
        return _seen(x, kernel_size, stride).max(axis=(-2, -1))

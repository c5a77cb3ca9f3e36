"""Records that resize signals ``(b, c, l)`` and images ``(b, c, h, w)``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from ...error import EmptyTensorError, ShapeMismatchError
from ...kernels.resize import Taps, linear, linear_taps, linear_vjp, nearest, nearest_vjp, scaled_size
from ...shape import Shape, expect_rank
from ..operation import Gradients, Meta, Metas, Operation, Sample
from ..work import elements, size_in_bytes
from .counts import integer
from .linalg import expect_floats


def _expect_elements(op: str, shape: Shape, target: tuple[int, ...]) -> None:
    """Raise ``EmptyTensorError`` if a dim without an element is to get some."""
    first = len(shape) - len(target)
    for dim, n in enumerate(target, first):
        if n and not shape[dim]:
            raise EmptyTensorError(op, shape, dim)


class Nearest(Operation, abstract=True):
    """Family: the element at ``min(n - 1, ⌊i · n / target⌋)`` of each dim of n, reckoned in whole numbers."""

    work = "select"
    spatial: ClassVar[int]
    target: tuple[int, ...]

    def infer(self, x: Meta) -> Meta:
        expect_rank(x.shape, self.spatial + 2, self.methods[0])
        _expect_elements(self.methods[0], x.shape, self.target)
        return Meta(Shape.of((*x.shape[:2], *self.target), self.methods[0]), x.dtype)

    def traffic(self, inputs: Sequence[Metas], output: Metas) -> int:
        return min(size_in_bytes(*inputs), size_in_bytes(output)) + size_in_bytes(output)

    def lower(self, x: mx.array) -> mx.array:
        if 0 in self.target:
            return mx.zeros((*x.shape[:2], *self.target), x.dtype)
        return nearest(x, self.target)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        if 0 in self.target:
            return (mx.zeros_like(inputs[0]),)
        return (nearest_vjp(cotangent, inputs[0].shape[2:]),)

    @staticmethod
    def numpy(x: Any, target: tuple[int, ...]) -> Any:
        for axis, n in enumerate(target, 2):
            x = np.take(x, [i * x.shape[axis] // n for i in range(n)], axis=axis)
        return x


class UpsampleNearest1d(Nearest):
    """``(b, c, l)`` to ``(b, c, target_size)``: element ``min(l - 1, ⌊i·l / target_size⌋)`` at place i.

    Every dtype, larger or smaller. Differentiable for every size; candle's only for whole factors. Raises
    ``EmptyTensorError`` if there is no element to take.
    """

    candle = "Tensor::interpolate1d(&self, target_size: usize) -> Result<Self>"
    methods = ("interpolate1d", "upsample_nearest1d")
    spatial = 1
    samples = (
        Sample(((2, 3, 4),), ((8,),)),
        Sample(((1, 2, 5),), ((7,),)),
        Sample(((2, 1, 7),), ((3,),)),
        Sample(((1, 2, 3),), ((3,),)),
        Sample(((1, 2, 3),), ((0,),)),
        Sample(((0, 2, 3),), ((5,),)),
    )

    @classmethod
    def bind(cls, x: Meta, target_size: int) -> Operation:
        return cls((integer("interpolate1d", "target_size", target_size, 0),))


class UpsampleNearest2d(Nearest):
    """``(b, c, h, w)`` to ``(b, c, target_h, target_w)``: element ``⌊i·n / target⌋`` at place i of a dim.

    Every dtype, larger or smaller. Differentiable for all sizes; candle's only for one whole factor. Raises
    ``EmptyTensorError`` if there is no element to take.
    """

    candle = "Tensor::interpolate2d(&self, target_h: usize, target_w: usize) -> Result<Self>"
    methods = ("interpolate2d", "upsample_nearest2d")
    spatial = 2
    samples = (
        Sample(((2, 3, 2, 3),), ((4, 9),)),
        Sample(((1, 2, 3, 4),), ((5, 2),)),
        Sample(((1, 2, 3, 2),), ((3, 5),)),
        Sample(((2, 0, 3, 2),), ((3, 5),)),
    )

    @classmethod
    def bind(cls, x: Meta, target_h: int, target_w: int) -> Operation:
        op = "interpolate2d"
        return cls((integer(op, "target_h", target_h, 0), integer(op, "target_w", target_w, 0)))


class UpsampleBilinear2d(Operation):
    """``(b, c, h, w)`` to ``(b, c, target_h, target_w)`` by the weighted mean of the four nearest elements.

    With ``align_corners`` the corners' elements keep their value, otherwise the outer edges lie on each other, as in
    PyTorch; nothing is smoothed when the result is smaller. ``upsample_bilinear2d_with_scale(scale_h, scale_w,
    align_corners)`` gives ``(⌊h·scale_h⌋, ⌊w·scale_w⌋)``, with ``1 / scale`` as the step unless corners are aligned, or
    the same values where the size stays. Float dtypes, halves added up in float32. Differentiable, unlike candle's.
    Raises ``EmptyTensorError`` if there is no element to take, ``ShapeMismatchError`` for a scale that is not above 0.
    """

    candle = "Tensor::upsample_bilinear2d(&self, target_h: usize, target_w: usize, align_corners: bool) -> Result<Self>"
    methods = ("upsample_bilinear2d", "upsample_bilinear2d_with_scale")
    samples = (
        Sample(((2, 3, 2, 3),), ((4, 5), False, None)),
        Sample(((1, 2, 3, 4),), ((5, 6), True, None)),
        Sample(((1, 2, 5, 6),), ((2, 4), False, None)),
        Sample(((1, 1, 4, 3),), ((1, 2), True, None)),
        Sample(((1, 2, 3, 3),), ((3, 3), False, None)),
        Sample(((1, 2, 3, 4),), ((7, 5), False, (2.5, 1.3))),
        Sample(((1, 0, 3, 4),), ((7, 5), False, None)),
    )
    work = "elementary"
    target: tuple[int, int]
    align_corners: bool
    scale: tuple[float, float] | None

    @classmethod
    def bind(cls, x: Meta, target_h: int, target_w: int, align_corners: bool) -> Operation:
        target = (integer(cls.key, "target_h", target_h, 0), integer(cls.key, "target_w", target_w, 0))
        return cls(target, bool(align_corners), None)

    @classmethod
    def bind_with_scale(cls, x: Meta, scale_h: float, scale_w: float, align_corners: bool) -> Operation:
        """The form that says how many times as large."""
        op = "upsample_bilinear2d_with_scale"
        expect_rank(x.shape, 4, op)
        for scale in (scale_h, scale_w):
            if not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
                raise ShapeMismatchError(f"{op}: got scale {scale!r}; takes a number above 0")
        scales = (float(scale_h), float(scale_w))
        h, w = scaled_size(tuple(x.shape[2:]), scales)
        return cls((h, w), bool(align_corners), scales)

    @classmethod
    def surface(cls) -> dict[str, Any]:
        return {"upsample_bilinear2d": cls.bind, "upsample_bilinear2d_with_scale": cls.bind_with_scale}

    def infer(self, x: Meta) -> Meta:
        expect_floats(self.key, x)
        expect_rank(x.shape, 4, self.key)
        _expect_elements(self.key, x.shape, self.target)
        return Meta(Shape.of((*x.shape[:2], *self.target), self.key), x.dtype)

    def flops(self, inputs: Sequence[Any], output: Metas) -> int:
        x = inputs[0].shape
        if tuple(x[2:]) == self.target:
            return 0
        # Two products and a sum for each element, first of the rows, then of the result.
        rows = elements(output) and x[0] * x[1] * self.target[0] * x[3]
        return 3 * (rows + elements(output))

    def _taps(self, size: Sequence[int]) -> list[Taps]:
        return _bilinear_taps(tuple(size), self.target, self.align_corners, self.scale)

    def lower(self, x: mx.array) -> mx.array:
        if 0 in self.target:
            return mx.zeros((*x.shape[:2], *self.target), x.dtype)
        return x if x.shape[2:] == self.target else linear(x, self._taps(x.shape[2:]))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        size = inputs[0].shape[2:]
        if 0 in self.target:
            return (mx.zeros_like(inputs[0]),)
        return (cotangent if size == self.target else linear_vjp(cotangent, self._taps(size), size),)

    @staticmethod
    def numpy(x: Any, target: tuple[int, int], align_corners: bool, scale: tuple[float, float] | None) -> Any:
        if x.shape[2:] == target:
            return x
        for axis, (places, weights) in enumerate(_bilinear_taps(x.shape[2:], target, align_corners, scale), 2):
            along = (-1, *[1] * (x.ndim - 1 - axis))
            x = sum(np.take(x, p, axis=axis) * w.reshape(along) for p, w in zip(places, weights))
        return x


def _bilinear_taps(
    size: tuple[int, ...], target: tuple[int, ...], align_corners: bool, scale: tuple[float, float] | None
) -> list[Taps]:
    scales = scale or (None, None)
    return [linear_taps(n, to, align_corners, s) for n, to, s in zip(size, target, scales)]

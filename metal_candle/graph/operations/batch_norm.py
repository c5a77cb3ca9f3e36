"""Records of batch normalisation: by the batch's own statistics, by running ones, and how those run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...dtype import DType
from ...error import ShapeMismatchBinaryOpError, ShapeMismatchError, UnexpectedNumberOfDimsError
from ...kernels import batch_norm
from ...kernels.variant import is_half
from ...shape import Shape
from ..operation import Arrays, Gradients, Meta, Metas, Operation, Sample
from ..work import Work, elements
from .linalg import expect_floats


def _expect_channels(x: Meta, *rows: Meta) -> None:
    if len(x.shape) < 2:
        raise UnexpectedNumberOfDimsError("batch_norm", "2 or more", x.shape)
    for row in rows:
        if tuple(row.shape) != (x.shape[1],):
            takes = "(b, c, …) and statistics, weight and bias (c,)"
            raise ShapeMismatchBinaryOpError("batch_norm", x.shape, row.shape, takes)


class BatchNorm(Operation):
    """(x - mean) / sqrt(variance + eps) of each channel, dim 1, by the batch's statistics; then · weight, + bias.

    Inputs: x ``(b, c, …)``; weight and bias ``(c,)``, or neither. Results: the normalised tensor, the mean and the
    biased variance ``(c,)``, of halves in float32; these two pass no gradient on. Without ``remove_mean`` the mean is
    taken to be 0. Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.
    """

    arity = None
    work = "norm"
    eps: float
    remove_mean: bool

    def infer(self, x: Meta, *weight_and_bias: Meta) -> Metas:
        expect_floats("batch_norm", x, *weight_and_bias)
        _expect_channels(x, *weight_and_bias)
        if batch_norm.values_per_channel(x.shape) < 2:
            raise ShapeMismatchError(
                f"batch_norm: got shape {tuple(x.shape)} in training; takes more than one value per channel"
            )
        row = Meta(Shape((x.shape[1],)), DType.F64 if x.dtype is DType.F64 else DType.F32)
        return x, row, row

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.work, elements(inputs[0])

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        # Sum, difference, square, sum and scale, then + bias.
        return (5 + (len(inputs) > 1)) * elements(inputs[0])

    def lower(self, x: mx.array, *weight_and_bias: mx.array) -> Arrays:
        weight, bias = weight_and_bias or (None, None)
        return tuple(batch_norm.forward(x, weight, bias, self.eps, self.remove_mean))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        weight = inputs[1] if len(inputs) > 1 else None
        wanted = (*needs, False, False)[:3]
        _, mean, variance = output
        found = batch_norm.vjp(cotangent[0], inputs[0], weight, mean, variance, wanted, self.eps, self.remove_mean)
        return found[: len(inputs)]


class RunningBatchNorm(Operation):
    """x · scale + shift of each channel, dim 1: batch norm by given statistics.

    Inputs: x ``(b, c, …)``, mean and variance ``(c,)`` of any float dtype; weight and bias ``(c,)`` of x's, or neither.
    The scale is weight / sqrt(variance + eps), the shift bias - mean · scale. Halves are computed in float32.
    """

    arity = None
    samples = (
        Sample(((5, 12), (12,), (12,)), (1e-5,), low=0.5, high=2.0),
        Sample(((2, 3, 4), (3,), (3,), (3,), (3,)), (1e-5,), low=0.5, high=2.0),
    )
    flops_per_element = 2
    eps: float

    def infer(self, x: Meta, mean: Meta, variance: Meta, *weight_and_bias: Meta) -> Meta:
        expect_floats("batch_norm", x, *weight_and_bias)
        for statistic in (mean, variance):
            expect_floats("batch_norm", statistic)
        _expect_channels(x, mean, variance, *weight_and_bias)
        return x

    def lower(self, x: mx.array, mean: mx.array, variance: mx.array, *weight_and_bias: mx.array) -> mx.array:
        wide = mx.float32 if is_half(x) else x.dtype
        weight, bias = weight_and_bias or (None, None)
        scale = mx.rsqrt(variance.astype(wide) + self.eps)
        scale = scale if weight is None else scale * weight
        shift = mean.astype(wide) * -scale
        shift = shift if bias is None else shift + bias
        row = (-1, *(1,) * (x.ndim - 2))
        return (x * scale.reshape(row) + shift.reshape(row)).astype(x.dtype)

    @staticmethod
    def numpy(x: Any, mean: Any, variance: Any, *rest: Any) -> Any:
        row = (-1, *(1,) * (x.ndim - 2))
        normed = (x - mean.reshape(row)) / np.sqrt(variance.reshape(row) + rest[-1])
        return normed * rest[0].reshape(row) + rest[1].reshape(row) if len(rest) > 1 else normed


class RunningStatistic(Operation):
    """running · (1 - momentum) + batch · momentum · factor, ``(c,)``, in the running one's dtype.

    ``factor`` makes of a biased variance an unbiased one.
    """

    arity = 2
    differentiable = False
    samples = (Sample(((12,), (12,)), (0.1, 1.25)),)
    flops_per_element = 3
    momentum: float
    factor: float

    def infer(self, running: Meta, batch: Meta) -> Meta:
        if running.shape != batch.shape:
            raise ShapeMismatchBinaryOpError("batch_norm", running.shape, batch.shape, "two statistics (c,)")
        return running

    def lower(self, running: mx.array, batch: mx.array) -> mx.array:
        wide = running.astype(batch.dtype) if is_half(running) else running
        return (wide * (1 - self.momentum) + batch * (self.momentum * self.factor)).astype(running.dtype)

    @staticmethod
    def numpy(running: Any, batch: Any, momentum: float, factor: float) -> Any:
        return running * (1 - momentum) + batch * (momentum * factor)

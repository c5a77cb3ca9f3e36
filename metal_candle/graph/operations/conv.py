"""Records of convolutions: candle's layout, channels first, and its order of arguments, padding first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from ...error import Conv1dInvalidArgsError, ShapeMismatchBinaryOpError
from ...kernels.conv import conv, conv_transpose, transposed_size, windows_of
from ...kernels.windows import Sizes, spatial
from ...shape import Shape, expect_rank
from ..operation import Gradients, Meta, Operation, Sample
from ..work import Work, elements
from .counts import integer
from .linalg import expect_floats


class Convolution(Operation, abstract=True):
    """Family: a convolution or its transpose over ``spatial`` dims. What does not fit is refused when recorded."""

    arity = 2
    work: ClassVar[Work] = "product"
    spatial: ClassVar[int]
    padding: int
    stride: int
    dilation: int
    groups: int

    def _refuse(self, x: Meta, kernel: Meta, takes: str) -> Exception:
        """The kind candle names: one of its own for one dim, a plain mismatch for two."""
        if self.spatial == 1:
            return Conv1dInvalidArgsError(self.key, x.shape, kernel.shape, self.padding, self.stride, f"takes {takes}")
        return ShapeMismatchBinaryOpError(self.key, x.shape, kernel.shape, takes)

    def _check(self, x: Meta, kernel: Meta) -> None:
        """Raise unless dtypes, ranks and numbers are such that channels can be looked at."""
        expect_floats(self.key, x, kernel)
        rank = self.spatial + 2
        expect_rank(x.shape, rank, self.key)
        expect_rank(kernel.shape, rank, f"{self.key}: kernel")
        if 0 in kernel.shape[2:]:
            raise self._refuse(x, kernel, "a kernel of 1 or more in each dim")


def _numbers(op: str, **numbers: int) -> list[int]:
    """The numbers as ints. Raises ``ShapeMismatchError`` unless paddings are from 0, the others from 1."""
    return [integer(op, name, value, 0 if "padding" in name else 1) for name, value in numbers.items()]


class Forward(Convolution, abstract=True):
    """Family: cross-correlation of ``(b, c_in, *size)`` with a kernel ``(c_out, c_in / groups, *k)``."""

    @classmethod
    def bind(cls, x: Meta, kernel: Meta, padding: int, stride: int, dilation: int, groups: int) -> Operation:
        return cls(*_numbers(cls.key, padding=padding, stride=stride, dilation=dilation, groups=groups))

    @classmethod
    def bind_with_algo(
        cls,
        x: Meta,
        kernel: Meta,
        padding: int,
        stride: int,
        dilation: int,
        groups: int,
        cudnn_fwd_algo: object = None,
    ) -> Operation:
        """The form that names one of cuDNN's algorithms, of which MLX chooses itself."""
        return cls.bind(x, kernel, padding, stride, dilation, groups)

    @classmethod
    def surface(cls) -> dict[str, Callable[..., Operation]]:
        return {cls.key: cls.bind, f"{cls.key}_with_algo": cls.bind_with_algo}

    def infer(self, x: Meta, kernel: Meta) -> Meta:
        self._check(x, kernel)
        c_in, (c_out, c_in_k) = x.shape[1], kernel.shape[:2]
        if c_in != c_in_k * self.groups or c_out % self.groups:
            takes = f"(b, c_in, …) and (c_out, c_in / groups, …) that divide into {self.groups} groups"
            raise self._refuse(x, kernel, takes)
        windows = windows_of(tuple(kernel.shape[2:]), self.padding, self.stride, self.dilation)
        count = windows.count(tuple(x.shape[2:]))
        if min(count) < 1:
            reach = windows.reach((1,) * self.spatial)
            raise self._refuse(x, kernel, f"an input that, padded by {self.padding}, is no smaller than {reach}")
        return Meta(Shape.of((x.shape[0], c_out, *count)), x.dtype)

    def steps(self, inputs: Sequence[Any], output: Any) -> tuple[Work, int]:
        # The columns: every window of every channel.
        (b, c_in, *_), kernel = inputs[0].shape, inputs[1].shape
        return "move", b * c_in * math.prod(kernel[2:]) * math.prod(output.shape[2:])

    def flops(self, inputs: Sequence[Any], output: Any) -> int:
        # A multiply-add for each of a kernel's elements, for each element of the result.
        return 2 * elements(output) * int(math.prod(inputs[1].shape[1:]))

    def lower(self, x: mx.array, kernel: mx.array) -> mx.array:
        return conv.forward(x, kernel, self.padding, self.stride, self.dilation, self.groups)[0]

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return conv.vjp(cotangent, inputs, output, needs, self.padding, self.stride, self.dilation, self.groups)

    @staticmethod
    def numpy(x: Any, kernel: Any, padding: int, stride: int, dilation: int, groups: int) -> Any:
        windows = windows_of(kernel.shape[2:], padding, stride, dilation)
        count = windows.count(x.shape[2:])
        padded = np.pad(x, [(0, 0), (0, 0), *[(padding, padding)] * len(count)])
        result = np.zeros((x.shape[0], kernel.shape[0], *count))
        for weight, index in zip(_elements(kernel), windows.elements(count)):
            _add_groups(result, padded[index], np.split(weight.T, groups, axis=1))
        return result


def _elements(kernel: Any) -> Any:
    """The kernel's matrix ``(first dim, second dim)`` for each of its elements, in row-major order."""
    return np.moveaxis(kernel.reshape(*kernel.shape[:2], -1), -1, 0)


def _add_groups(result: Any, seen: Any, weights: Sequence[Any]) -> None:
    """Add to each group of ``result``'s channels its group of ``seen`` times its weight ``(in, out)``."""
    into, sources = np.split(result, len(weights), axis=1), np.split(seen, len(weights), axis=1)
    for part, source, weight in zip(into, sources, weights):
        part += np.einsum("bi...,io->bo...", source, weight)


class Conv1d(Forward):
    """Cross-correlation of ``(b, c_in, l)`` with a kernel ``(c_out, c_in / groups, k)``: ``(b, c_out, l')``.

    ``l' = ⌊(l + 2·padding - dilation·(k - 1) - 1) / stride⌋ + 1``; float dtypes. Channels, groups or a length that
    do not fit raise ``Conv1dInvalidArgsError``, where candle underflows for a kernel longer than the padded input.
    ``conv1d_with_algo`` takes one of cuDNN's algorithms too and ignores it.
    """

    candle = (
        "Tensor::conv1d(&self, kernel: &Self, padding: usize, stride: usize, dilation: usize, groups: usize) "
        "-> Result<Self>"
    )
    methods = ("conv1d", "conv1d_with_algo")
    spatial = 1
    samples = (
        Sample(((2, 3, 7), (4, 3, 3)), (0, 1, 1, 1)),
        Sample(((1, 4, 8), (6, 2, 2)), (2, 3, 2, 2)),
        Sample(((2, 3, 5), (3, 1, 3)), (1, 1, 1, 3)),
        Sample(((2, 2, 4), (5, 2, 1)), (0, 1, 1, 1)),
        Sample(((0, 2, 4), (3, 2, 2)), (0, 1, 1, 1)),
    )


class Conv2d(Forward):
    """Cross-correlation of ``(b, c_in, h, w)`` with a kernel ``(c_out, c_in / groups, kh, kw)``.

    The result is ``(b, c_out, h', w')``, sizes as in ``conv1d``, one padding, stride and dilation for both dims; float
    dtypes. What does not fit raises ``ShapeMismatchError``. ``conv2d_with_algo`` takes one of cuDNN's algorithms too
    and ignores it.
    """

    candle = (
        "Tensor::conv2d(&self, kernel: &Self, padding: usize, stride: usize, dilation: usize, groups: usize) "
        "-> Result<Self>"
    )
    methods = ("conv2d", "conv2d_with_algo")
    spatial = 2
    samples = (
        Sample(((2, 2, 5, 4), (3, 2, 3, 2)), (0, 1, 1, 1)),
        Sample(((1, 4, 5, 6), (2, 2, 2, 3)), (1, 2, 2, 2)),
        Sample(((1, 3, 4, 4), (3, 1, 3, 3)), (1, 1, 1, 3)),
        Sample(((2, 3, 3, 2), (2, 3, 1, 1)), (0, 1, 1, 1)),
        Sample(((1, 1, 2, 2), (1, 1, 1, 1)), (2, 3, 1, 1)),
    )


class Transposed(Convolution, abstract=True):
    """Family: the adjoint of ``Forward`` for its input, as a layer of its own."""

    output_padding: int

    def infer(self, x: Meta, kernel: Meta) -> Meta:
        self._check(x, kernel)
        c_in = x.shape[1]
        if c_in != kernel.shape[0] or c_in % self.groups:
            takes = f"(b, c_in, …) and (c_in, c_out / groups, …) that divide into {self.groups} groups"
            raise self._refuse(x, kernel, takes)
        windows = windows_of(tuple(kernel.shape[2:]), self.padding, self.stride, self.dilation)
        size = transposed_size(tuple(x.shape[2:]), windows, self.output_padding)
        if 0 in x.shape[2:] or min(size) < 1:
            raise self._refuse(x, kernel, f"sizes that leave a result; with padding {self.padding} it is {size}")
        return Meta(Shape.of((x.shape[0], kernel.shape[1] * self.groups, *size)), x.dtype)

    def steps(self, inputs: Sequence[Any], output: Any) -> tuple[Work, int]:
        # The columns, which are added to the result.
        (b, _, *size), kernel = inputs[0].shape, inputs[1].shape
        return "arithmetic", b * kernel[1] * self.groups * math.prod(kernel[2:]) * math.prod(size)

    def flops(self, inputs: Sequence[Any], output: Any) -> int:
        # A multiply-add for each of a kernel's elements, for each element of the input.
        return 2 * elements(inputs[0]) * int(math.prod(inputs[1].shape[1:]))

    def _params(self) -> tuple[int, ...]:
        return self.padding, self.output_padding, self.stride, self.dilation, self.groups

    def lower(self, x: mx.array, kernel: mx.array) -> mx.array:
        return conv_transpose.forward(x, kernel, *self._params())[0]

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return conv_transpose.vjp(cotangent, inputs, output, needs, *self._params())

    @staticmethod
    def numpy(x: Any, kernel: Any, padding: int, stride: int, dilation: int, groups: int, output_padding: int) -> Any:
        windows = windows_of(kernel.shape[2:], padding, stride, dilation)
        size: Sizes = transposed_size(x.shape[2:], windows, output_padding)
        wide = [n + 2 * padding + output_padding for n in size]
        result = np.zeros((x.shape[0], kernel.shape[1] * groups, *wide))
        for weight, index in zip(_elements(kernel), windows.elements(x.shape[2:])):
            _add_groups(result[index], x, np.split(weight, groups))
        return result[spatial(slice(padding, padding + n) for n in size)]


class ConvTranspose1d(Transposed):
    """Transposed convolution of ``(b, c_in, l)`` with a kernel ``(c_in, c_out / groups, k)``: ``(b, c_out, l')``.

    ``l' = (l - 1)·stride - 2·padding + dilation·(k - 1) + output_padding + 1``; float dtypes. Unlike candle's it is
    differentiable, for the input and the kernel. What does not fit raises ``Conv1dInvalidArgsError``.
    """

    candle = (
        "Tensor::conv_transpose1d(&self, kernel: &Self, padding: usize, output_padding: usize, stride: usize, "
        "dilation: usize, groups: usize) -> Result<Self>"
    )
    methods = ("conv_transpose1d",)
    spatial = 1
    samples = (
        Sample(((2, 3, 4), (3, 2, 3)), (0, 1, 1, 1, 0)),
        Sample(((1, 4, 3), (4, 3, 2)), (1, 3, 2, 2, 2)),
        Sample(((2, 2, 3), (2, 1, 3)), (2, 2, 1, 1, 3)),
    )

    @classmethod
    def bind(
        cls, x: Meta, kernel: Meta, padding: int, output_padding: int, stride: int, dilation: int, groups: int
    ) -> Operation:
        numbers = _numbers(cls.key, padding=padding, stride=stride, dilation=dilation, groups=groups)
        return cls(*numbers, *_numbers(cls.key, output_padding=output_padding))


class ConvTranspose2d(Transposed):
    """Transposed convolution of ``(b, c_in, h, w)`` with a kernel ``(c_in, c_out, kh, kw)``: ``(b, c_out, h', w')``.

    Sizes as in ``conv_transpose1d``, the same numbers for both dims, no groups; float dtypes. What does not fit
    raises ``ShapeMismatchError``.
    """

    candle = (
        "Tensor::conv_transpose2d(&self, kernel: &Self, padding: usize, output_padding: usize, stride: usize, "
        "dilation: usize) -> Result<Self>"
    )
    methods = ("conv_transpose2d",)
    spatial = 2
    samples = (
        Sample(((2, 2, 3, 2), (2, 3, 2, 3)), (0, 1, 1, 1, 0)),
        Sample(((1, 3, 2, 3), (3, 2, 3, 2)), (1, 2, 2, 1, 1)),
        Sample(((1, 2, 3, 3), (2, 1, 1, 1)), (0, 2, 1, 1, 0)),
    )

    @classmethod
    def bind(cls, x: Meta, kernel: Meta, padding: int, output_padding: int, stride: int, dilation: int) -> Operation:
        padding, stride, dilation, output_padding = _numbers(
            cls.key, padding=padding, stride=stride, dilation=dilation, output_padding=output_padding
        )
        return cls(padding, stride, dilation, 1, output_padding)

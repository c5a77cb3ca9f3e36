"""Convolution layers, channels first. candle: ``candle_nn::conv``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..constructors import Default
from ..dtype import DType
from ..error import ArgumentValueError
from ..error.expect import expect_config
from ..graph.operations.binary import Add
from ..graph.operations.counts import integer
from ..tensor.arguments import expect_tensor
from ..tensor.eager import Tensor
from .init import DEFAULT_KAIMING_NORMAL, Init, over_root
from .module import Module, T
from .var_builder import VarBuilder

if TYPE_CHECKING:
    from .batch_norm import BatchNorm

C = TypeVar("C")


@dataclass(frozen=True)
class _ConvConfig(Default):
    """The fields of both."""

    padding: int = 0
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    cudnn_fwd_algo: object = None


@dataclass(frozen=True)
class Conv1dConfig(_ConvConfig):
    """Numbers of ``Conv1d``. ``cudnn_fwd_algo`` is candle's and ignored: MLX chooses its algorithms itself.

    candle: ``candle_nn::Conv1dConfig``.
    """


@dataclass(frozen=True)
class Conv2dConfig(_ConvConfig):
    """Numbers of ``Conv2d``, the same for both dims. ``cudnn_fwd_algo`` is ignored, as in ``Conv1dConfig``.

    candle: ``candle_nn::Conv2dConfig``.
    """


@dataclass(frozen=True)
class ConvTranspose1dConfig(Default):
    """Numbers of ``ConvTranspose1d``; ``output_padding`` lengthens the result. candle: ``ConvTranspose1dConfig``."""

    padding: int = 0
    output_padding: int = 0
    stride: int = 1
    dilation: int = 1
    groups: int = 1


@dataclass(frozen=True)
class ConvTranspose2dConfig(Default):
    """Numbers of ``ConvTranspose2d``, the same for both dims; no groups. candle: ``ConvTranspose2dConfig``."""

    padding: int = 0
    output_padding: int = 0
    stride: int = 1
    dilation: int = 1


class Convolution(Module, Generic[C]):
    """Base of the four: a weight, a bias for each channel of the result or none, and a config."""

    def __init__(self, weight: Tensor, bias: Tensor | None, config: C) -> None:
        expect_tensor(type(self).__name__, weight, "weight")
        if bias is not None:
            expect_tensor(type(self).__name__, bias, "bias")
        self._weight, self._bias, self._config = weight, bias, config

    def weight(self) -> Tensor:
        """The weight."""
        return self._weight

    def bias(self) -> Tensor | None:
        """The bias, ``(c_out,)``, if there is one."""
        return self._bias

    def config(self) -> C:
        """Its padding, stride and so on."""
        return self._config

    def _plus_bias(self, xs: T) -> T:
        """``xs`` and, in dim 1, the bias. Raises ``UnexpectedNumberOfDimsError`` unless that has one dim."""
        if self._bias is None:
            return xs
        shape = (1, self._bias.dims1(), *[1] * (xs.rank - 2))
        bias: Any = xs._lift(self._bias)
        return xs._record(Add(), bias.reshape(shape))


class Conv1d(Convolution[Conv1dConfig]):
    """Cross-correlation of ``(b, c_in, l)`` with a weight ``(c_out, c_in / groups, k)``: ``(b, c_out, l')``.

    Sizes and errors are those of ``Tensor.conv1d``. candle: ``candle_nn::Conv1d``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, config: Conv1dConfig = Conv1dConfig()) -> None:
        super().__init__(weight, bias, expect_config("Conv1d", config, Conv1dConfig))

    def forward(self, xs: T) -> T:
        """The convolution. Raises ``Conv1dInvalidArgsError`` where channels or sizes do not fit."""
        x: Any = xs
        c = self._config
        product: T = x.conv1d(x._lift(self._weight), c.padding, c.stride, c.dilation, c.groups)
        return self._plus_bias(product)


class Conv2d(Convolution[Conv2dConfig]):
    """Cross-correlation of ``(b, c_in, h, w)`` with a weight ``(c_out, c_in / groups, kh, kw)``.

    Sizes and errors are those of ``Tensor.conv2d``. candle: ``candle_nn::Conv2d``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, config: Conv2dConfig = Conv2dConfig()) -> None:
        super().__init__(weight, bias, expect_config("Conv2d", config, Conv2dConfig))

    def forward(self, xs: T) -> T:
        """The convolution, ``(b, c_out, h', w')``. Raises ``ShapeMismatchError`` where something does not fit."""
        x: Any = xs
        c = self._config
        product: T = x.conv2d(x._lift(self._weight), c.padding, c.stride, c.dilation, c.groups)
        return self._plus_bias(product)

    def absorb_bn(self, bn: BatchNorm) -> Conv2d:
        """One layer that does what this one and then ``bn``, by its running statistics, do; it has a bias.

        Of today's values: later updates do not reach it. Gradients reach this layer's and ``bn``'s parameters, not
        the statistics. Halves are computed in float32. Raises ``ArgumentValueError`` for a ``bn`` without weight and
        bias.

        candle: ``Conv2d::absorb_bn(&self, bn: &BatchNorm) -> Result<Self>``
        """
        affine = bn.weight_and_bias()
        if affine is None:
            raise ArgumentValueError("absorb_bn: got a batch norm without weight and bias; takes one with both")
        dtype = self._weight.dtype
        wide = DType.F64 if dtype is DType.F64 else DType.F32
        weight, bias, mean, variance = (
            tensor.to_dtype(wide) for tensor in (*affine, bn.running_mean().detach(), bn.running_var().detach())
        )
        scale = weight / (variance + bn.eps()).sqrt()
        moved = mean if self._bias is None else mean - self._bias.to_dtype(wide)
        absorbed = self._weight.to_dtype(wide) * scale.reshape((self._weight.dim(0), 1, 1, 1))
        return Conv2d(absorbed.to_dtype(dtype), (bias - scale * moved).to_dtype(dtype), self._config)


class ConvTranspose1d(Convolution[ConvTranspose1dConfig]):
    """Transposed convolution of ``(b, c_in, l)`` with a weight ``(c_in, c_out / groups, k)``: ``(b, c_out, l')``.

    Sizes and errors are those of ``Tensor.conv_transpose1d``. Differentiable, unlike candle's.

    candle: ``candle_nn::ConvTranspose1d``.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, config: ConvTranspose1dConfig = ConvTranspose1dConfig()
    ) -> None:
        super().__init__(weight, bias, expect_config("ConvTranspose1d", config, ConvTranspose1dConfig))

    def forward(self, xs: T) -> T:
        """The transposed convolution. Raises ``Conv1dInvalidArgsError`` where channels or sizes do not fit."""
        x: Any = xs
        c, weight = self._config, x._lift(self._weight)
        product: T = x.conv_transpose1d(weight, c.padding, c.output_padding, c.stride, c.dilation, c.groups)
        return self._plus_bias(product)


class ConvTranspose2d(Convolution[ConvTranspose2dConfig]):
    """Transposed convolution of ``(b, c_in, h, w)`` with a weight ``(c_in, c_out, kh, kw)``: ``(b, c_out, h', w')``.

    Sizes and errors are those of ``Tensor.conv_transpose2d``. candle: ``candle_nn::ConvTranspose2d``.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, config: ConvTranspose2dConfig = ConvTranspose2dConfig()
    ) -> None:
        super().__init__(weight, bias, expect_config("ConvTranspose2d", config, ConvTranspose2dConfig))

    def forward(self, xs: T) -> T:
        """The transposed convolution. Raises ``ShapeMismatchError`` where channels or sizes do not fit."""
        x: Any = xs
        c, weight = self._config, x._lift(self._weight)
        product: T = x.conv_transpose2d(weight, c.padding, c.output_padding, c.stride, c.dilation)
        return self._plus_bias(product)


# --- from a VarBuilder ------------------------------------------------------------------------


def conv1d(in_channels: int, out_channels: int, kernel_size: int, cfg: Conv1dConfig, vb: VarBuilder) -> Conv1d:
    """A layer from ``vb``'s ``weight`` and ``bias``. New ones start Kaiming normal, and uniform in ±1/sqrt(in).

    Raises ``ArgumentValueError`` unless ``cfg.groups`` divides both numbers of channels, ``ArgumentTypeError`` for
    another config. candle: ``candle_nn::conv1d``.
    """
    expect_config("conv1d", cfg, Conv1dConfig)
    weight = _weight(in_channels, out_channels, (kernel_size,), cfg.groups, vb)
    return Conv1d(weight, _bias(out_channels, over_root(in_channels), vb), cfg)


def conv1d_no_bias(in_channels: int, out_channels: int, kernel_size: int, cfg: Conv1dConfig, vb: VarBuilder) -> Conv1d:
    """As ``conv1d``, without bias. candle: ``candle_nn::conv1d_no_bias``."""
    expect_config("conv1d_no_bias", cfg, Conv1dConfig)
    return Conv1d(_weight(in_channels, out_channels, (kernel_size,), cfg.groups, vb), None, cfg)


def conv2d(in_channels: int, out_channels: int, kernel_size: int, cfg: Conv2dConfig, vb: VarBuilder) -> Conv2d:
    """As ``conv1d``, with a square kernel. candle: ``candle_nn::conv2d``."""
    expect_config("conv2d", cfg, Conv2dConfig)
    weight = _weight(in_channels, out_channels, (kernel_size, kernel_size), cfg.groups, vb)
    return Conv2d(weight, _bias(out_channels, over_root(in_channels), vb), cfg)


def conv2d_no_bias(in_channels: int, out_channels: int, kernel_size: int, cfg: Conv2dConfig, vb: VarBuilder) -> Conv2d:
    """As ``conv2d``, without bias. candle: ``candle_nn::conv2d_no_bias``."""
    expect_config("conv2d_no_bias", cfg, Conv2dConfig)
    return Conv2d(_weight(in_channels, out_channels, (kernel_size, kernel_size), cfg.groups, vb), None, cfg)


def conv_transpose1d(
    in_channels: int, out_channels: int, kernel_size: int, cfg: ConvTranspose1dConfig, vb: VarBuilder
) -> ConvTranspose1d:
    """A layer from ``vb``'s ``weight`` and ``bias``. New ones start uniform in ±1/sqrt(out · kernel).

    Raises ``ArgumentValueError`` unless ``cfg.groups`` divides both numbers of channels.
    candle: ``candle_nn::conv_transpose1d``.
    """
    expect_config("conv_transpose1d", cfg, ConvTranspose1dConfig)
    weight = _transposed(in_channels, out_channels, (kernel_size,), cfg.groups, vb)
    return ConvTranspose1d(weight, _bias(out_channels, over_root(out_channels * kernel_size), vb), cfg)


def conv_transpose1d_no_bias(
    in_channels: int, out_channels: int, kernel_size: int, cfg: ConvTranspose1dConfig, vb: VarBuilder
) -> ConvTranspose1d:
    """As ``conv_transpose1d``, without bias. candle: ``candle_nn::conv_transpose1d_no_bias``."""
    expect_config("conv_transpose1d_no_bias", cfg, ConvTranspose1dConfig)
    return ConvTranspose1d(_transposed(in_channels, out_channels, (kernel_size,), cfg.groups, vb), None, cfg)


def conv_transpose2d(
    in_channels: int, out_channels: int, kernel_size: int, cfg: ConvTranspose2dConfig, vb: VarBuilder
) -> ConvTranspose2d:
    """As ``conv_transpose1d``, with a square kernel, so ±1/(sqrt(out) · kernel).

    candle: ``candle_nn::conv_transpose2d``.
    """
    expect_config("conv_transpose2d", cfg, ConvTranspose2dConfig)
    weight = _transposed(in_channels, out_channels, (kernel_size, kernel_size), 1, vb)
    return ConvTranspose2d(weight, _bias(out_channels, over_root(out_channels * kernel_size**2), vb), cfg)


def conv_transpose2d_no_bias(
    in_channels: int, out_channels: int, kernel_size: int, cfg: ConvTranspose2dConfig, vb: VarBuilder
) -> ConvTranspose2d:
    """As ``conv_transpose2d``, without bias. candle: ``candle_nn::conv_transpose2d_no_bias``."""
    expect_config("conv_transpose2d_no_bias", cfg, ConvTranspose2dConfig)
    return ConvTranspose2d(_transposed(in_channels, out_channels, (kernel_size, kernel_size), 1, vb), None, cfg)


def _expect_sizes(in_channels: int, out_channels: int, kernel_size: int, groups: int) -> None:
    named = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size, "groups": groups}
    for name, value in named.items():
        integer("conv", name, value, 0)
    if groups < 1 or in_channels % groups or out_channels % groups:
        got = f"{in_channels} channels in, {out_channels} out and {groups} groups"
        raise ArgumentValueError(f"conv: got {got}; takes groups that divide both")


def _weight(in_channels: int, out_channels: int, kernel: tuple[int, ...], groups: int, vb: VarBuilder) -> Tensor:
    _expect_sizes(in_channels, out_channels, kernel[0], groups)
    return vb.get_with_hints((out_channels, in_channels // groups, *kernel), "weight", DEFAULT_KAIMING_NORMAL)


def _transposed(in_channels: int, out_channels: int, kernel: tuple[int, ...], groups: int, vb: VarBuilder) -> Tensor:
    _expect_sizes(in_channels, out_channels, kernel[0], groups)
    start = over_root(out_channels * kernel[0] ** len(kernel))
    return vb.get_with_hints((in_channels, out_channels // groups, *kernel), "weight", start)


def _bias(out_channels: int, start: Init, vb: VarBuilder) -> Tensor:
    return vb.get_with_hints((out_channels,), "bias", start)

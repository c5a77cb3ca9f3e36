"""Convolution and its adjoint, channels first: ``(batch, channels, *size)`` with one or two spatial dims.

MLX's own are channels last. On the CPU they multiply columns as here, but in float32 even for float64 arrays, and
their gradient for the input is a convolution with stride-many zeros inserted. Measured on one x86-64 core with
OpenBLAS, float32, in milliseconds, MLX's against the ones here:

| batch x channels x side, kernels, stride | forward | input's gradient | kernel's gradient |
|---|---|---|---|
| 32 x 1 x 28, 32 of 5x5, 1 | 1.2, 0.7 | 74, 2.4 | 1.2, 0.8 |
| 8 x 64 x 56, 64 of 3x3, 1 | 75, 62 | 72, 45 | 69, 40 |
| 8 x 64 x 56, 128 of 3x3, 2 | 16, 14 | 874, 23 | 15, 14 |
| 8 x 256 x 14, 256 of 3x3, 1 | 24, 23 | 24, 24 | 23, 27 |
| 1 x 3 x 224, 64 of 7x7, 2 | 5.5, 3.9 | 228, 9.1 | 4.0, 4.2 |
| 8 x 64 x 56, 64 of 1x1, 1 | 8.9, 3.9 | 6.0, 3.9 | 6.4, 3.2 |

So the CPU takes the columns; a GPU takes MLX's convolution, which is made for it.

A kernel is ``(c_out, c_in / groups, *k)`` for ``conv`` and ``(c_in, c_out / groups, *k)`` for ``conv_transpose``: the
latter is the adjoint of the former with the same array as kernel, so both are made of the same three products.
Chellapilla, Puri and Simard 2006, https://inria.hal.science/inria-00112631.
"""

from __future__ import annotations

import math

import mlx.core as mx

from .kernel import Kernel, on_cpu
from .variant import Gradients, Outputs, Variant, differentiated_by_mlx, is_half, through_float32
from .windows import Sizes, Windows, in_pieces, spatial


def windows_of(kernel: Sizes, padding: int, stride: int, dilation: int) -> Windows:
    """The same numbers for each spatial dim, as candle has it."""
    rank = len(kernel)
    return Windows(kernel, (stride,) * rank, (dilation,) * rank, (padding,) * rank)


def transposed_size(size: Sizes, windows: Windows, output_padding: int) -> Sizes:
    """The size of a transposed convolution's result; 0 or less if there is none."""
    return tuple(n - 2 * p + output_padding for n, p in zip(windows.reach(size), windows.padding))


# --- the definitions --------------------------------------------------------------------------


def _correlated(x: mx.array, weight: mx.array, windows: Windows, count: Sizes, groups: int) -> mx.array:
    """A product for each element of the kernel, and their sum, of halves in float32."""
    if is_half(x):
        wide = _correlated(x.astype(mx.float32), weight.astype(mx.float32), windows, count, groups)
        return wide.astype(x.dtype)
    b, o = x.shape[0], weight.shape[0]
    x = windows.padded(x, count)
    by_element = weight.reshape(groups, o // groups, weight.shape[1], math.prod(windows.kernel))
    total: mx.array | None = None
    for i, index in enumerate(windows.elements(count)):
        seen = x[index].reshape(b, groups, weight.shape[1], math.prod(count))
        term = by_element[..., i] @ seen
        total = term if total is None else total + term
    assert total is not None
    return total.reshape(b, o, *count)


def _reference(x: mx.array, weight: mx.array, padding: int, stride: int, dilation: int, groups: int) -> mx.array:
    """Cross-correlation of x ``(b, c_in, *size)`` with weight ``(c_out, c_in / groups, *k)``."""
    windows = windows_of(weight.shape[2:], padding, stride, dilation)
    return _correlated(x, weight, windows, windows.count(x.shape[2:]), groups)


def _transposed_reference(
    x: mx.array, weight: mx.array, padding: int, output_padding: int, stride: int, dilation: int, groups: int
) -> mx.array:
    """Transposed convolution of x ``(b, c_in, *size)`` with weight ``(c_in, c_out / groups, *k)``.

    The adjoint of ``conv`` with this padding, stride and dilation; ``output_padding`` lengthens the result.
    """
    windows = windows_of(weight.shape[2:], padding, stride, dilation)
    out = transposed_size(x.shape[2:], windows, output_padding)
    for axis in range(2, x.ndim):
        # stride - 1 zeros behind each element; those behind the last one are padding.
        apart = mx.expand_dims(x, axis + 1)
        zeros = mx.zeros((*apart.shape[: axis + 1], stride - 1, *apart.shape[axis + 2 :]), x.dtype)
        x = mx.concatenate([apart, zeros], axis=axis + 1).flatten(axis, axis + 1)
    whole = Windows(windows.kernel, (1,) * len(out), windows.dilation, _full(windows))
    wide = tuple(n + padding for n in out)
    turned = _turned(weight, groups)
    result = _correlated(x, turned, whole, wide, groups)
    return result[spatial([slice(padding, None)] * len(out))]


def _full(windows: Windows) -> Sizes:
    """The padding with which every window that touches the array is seen."""
    return tuple(d * (k - 1) for k, d in zip(windows.kernel, windows.dilation))


def _turned(weight: mx.array, groups: int) -> mx.array:
    """The kernel of the adjoint: ``(g · a, b, *k)`` to ``(g · b, a, *k)``, each dim of k backwards."""
    o, c = weight.shape[:2]
    parts = weight.reshape(groups, o // groups, c, *weight.shape[2:]).swapaxes(1, 2)
    backwards = spatial([slice(None, None, -1)] * (weight.ndim - 2))
    return parts.reshape(groups * c, o // groups, *weight.shape[2:])[backwards]


# Up to so many channels out for one in, the input's gradient is computed as a convolution. Measured on one x86-64 core,
# 3x3 kernels, stride 1: 64 x 32 x 8 to 64 channels 4.4 ms instead of 5.1, 32 x 32 x 16 to 64 7.5 instead of 8.7.
WIDER = 2
# Where a kernel has so many times as many elements as an image has places, its gradient is one product of all images,
# not the sum of one each: 64 x 64 x 8 to 64 channels 6.4 ms instead of 7.9, 8 x 512 x 7 to 512 26 instead of 86.
FEW = 2

# Images of up to so many places are one product, not one each: a BLAS's threads meet at the end of each, and wait long
# where other programs compute. 64 x 32 x 4 to 64 channels on two cores 0.57 ms instead of 0.88, 64 x 32 x 8 with others
# at work 16 instead of 38. Larger ones are up to 15 % slower so: 8 x 256 x 14 to 256.
SMALL = 64

# --- products of columns ----------------------------------------------------------------------


def _product(x: mx.array, weight: mx.array, windows: Windows, count: Sizes, groups: int) -> mx.array:
    """The convolution ``(b, c_in, *size)`` to ``(b, c_out, *count)``."""
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    places = math.prod(count)

    def of_piece(x: mx.array) -> mx.array:
        b = x.shape[0]
        if groups == 1 and b > 1 and places <= SMALL:
            of_places = windows.rows(x, count) @ _last(weight).reshape(weight.shape[0], -1).T
            apart = of_places.reshape(b, places, weight.shape[0]).swapaxes(1, 2)
            return mx.contiguous(apart).reshape(b, weight.shape[0], *count)
        columns = windows.columns(x, count).reshape(b, groups, rows.shape[2], places)
        return (rows @ columns).reshape(b, weight.shape[0], *count)

    return mx.concatenate(in_pieces(of_piece, groups * rows.shape[2] * places, x))


def _adjoint(y: mx.array, weight: mx.array, windows: Windows, size: Sizes, groups: int) -> mx.array:
    """The convolution's adjoint for its input: ``(b, c_out, *count)`` to ``(b, c_in, *size)``."""
    count = y.shape[2:]
    o, c = weight.shape[0], weight.shape[1] * groups
    around = tuple(full - p for full, p in zip(_full(windows), windows.padding))
    if o <= WIDER * c and set(windows.stride) == {1} and min(around) >= 0:
        # A convolution too, whose columns are quicker made than others are added up.
        turned = Windows(windows.kernel, windows.stride, windows.dilation, around)
        return _product(y, _turned(weight, groups), turned, size, groups)
    rows = weight.reshape(groups, o // groups, -1)
    places = math.prod(count)

    def of_piece(y: mx.array) -> mx.array:
        b = y.shape[0]
        columns = rows.swapaxes(1, 2) @ y.reshape(b, groups, o // groups, places)
        return windows.columns_placed_back(columns.reshape(b, -1, places), size, count)

    return mx.concatenate(in_pieces(of_piece, groups * rows.shape[2] * places, y))


def _of_kernel(x: mx.array, y: mx.array, windows: Windows, groups: int) -> mx.array:
    """The convolution's adjoint for its kernel: ``(b, c_in, *size)``, ``(b, c_out, *count)`` to the kernel's shape."""
    count, c, o = y.shape[2:], x.shape[1] // groups, y.shape[1]
    places, elements = math.prod(count), c * math.prod(windows.kernel)
    whole = groups == 1 and FEW * places <= elements

    def of_piece(x: mx.array, y: mx.array) -> mx.array:
        b = x.shape[0]
        if whole:
            upstream = y.reshape(b, o, places).swapaxes(1, 2).reshape(b * places, o)
            return upstream.T @ windows.rows(x, count)  # a window's channels last
        columns = windows.columns(x, count).reshape(b, groups, elements, places)
        return (y.reshape(b, groups, o // groups, places) @ columns.swapaxes(-1, -2)).sum(axis=0)

    total, *others = in_pieces(of_piece, groups * elements * places, x, y)
    for other in others:
        total = total + other
    if whole:
        return _first(total.reshape(o, *windows.kernel, c))
    return total.reshape(o, c, *windows.kernel)


def _forward(x: mx.array, weight: mx.array, padding: int, stride: int, dilation: int, groups: int) -> Outputs:
    windows = windows_of(weight.shape[2:], padding, stride, dilation)
    return (_product(x, weight, windows, windows.count(x.shape[2:]), groups),)


def _vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    padding: int,
    stride: int,
    dilation: int,
    groups: int,
) -> Gradients:
    x, weight = inputs
    windows = windows_of(weight.shape[2:], padding, stride, dilation)
    return (
        _adjoint(cotangent, weight, windows, x.shape[2:], groups) if needs[0] else None,
        _of_kernel(x, cotangent, windows, groups) if needs[1] else None,
    )


def _transposed_forward(
    x: mx.array, weight: mx.array, padding: int, output_padding: int, stride: int, dilation: int, groups: int
) -> Outputs:
    windows = windows_of(weight.shape[2:], padding, stride, dilation)
    return (_adjoint(x, weight, windows, transposed_size(x.shape[2:], windows, output_padding), groups),)


def _transposed_vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    padding: int,
    output_padding: int,
    stride: int,
    dilation: int,
    groups: int,
) -> Gradients:
    x, weight = inputs
    windows = windows_of(weight.shape[2:], padding, stride, dilation)
    return (
        _product(cotangent, weight, windows, x.shape[2:], groups) if needs[0] else None,
        _of_kernel(cotangent, x, windows, groups) if needs[1] else None,
    )


# --- MLX's convolution ------------------------------------------------------------------------


def _mlx(x: mx.array, weight: mx.array, padding: int, stride: int, dilation: int, groups: int) -> mx.array:
    result = mx.conv_general(
        _last(x), _last(weight), stride=stride, padding=padding, kernel_dilation=dilation, groups=groups
    )
    return _first(result)


def _mlx_transposed(
    x: mx.array, weight: mx.array, padding: int, output_padding: int, stride: int, dilation: int, groups: int
) -> mx.array:
    windows = windows_of(weight.shape[2:], padding, stride, dilation)
    out = transposed_size(x.shape[2:], windows, output_padding)
    around = [full - padding for full in _full(windows)]
    parts = weight.reshape(groups, x.shape[1] // groups, *weight.shape[1:]).swapaxes(1, 2)
    result = mx.conv_general(
        _last(x),
        _last(parts.reshape(-1, *parts.shape[2:])),
        stride=1,
        # MLX takes no negative padding: what is too much is cut off below.
        padding=([max(n, 0) for n in around], [max(n + output_padding, 0) for n in around]),
        kernel_dilation=dilation,
        input_dilation=stride,
        groups=groups,
        flip=True,
    )
    return _first(result)[spatial(slice(max(-n, 0), max(-n, 0) + size) for n, size in zip(around, out))]


def _mlx_transposed_forward(x: mx.array, weight: mx.array, *params: int) -> Outputs:
    return (_mlx_transposed(x, weight, *params),)


def _mlx_transposed_vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    padding: int,
    output_padding: int,
    stride: int,
    dilation: int,
    groups: int,
) -> Gradients:
    """MLX 0.32.4's own gradient has another shape than the input where an output padding is at least the stride."""
    x, weight = inputs
    windows = windows_of(weight.shape[2:], padding, stride, dilation)
    upstream = windows.padded(cotangent, x.shape[2:])

    def adjoint(weight: mx.array) -> mx.array:
        return _mlx(upstream, weight, 0, stride, dilation, groups)

    return (
        adjoint(weight) if needs[0] else None,
        # The adjoint is linear in the kernel: its derivative in the direction of x is what belongs to the kernel.
        mx.vjp(adjoint, [weight], [x])[1][0] if needs[1] else None,
    )


def _last(x: mx.array) -> mx.array:
    """Channels last."""
    return mx.moveaxis(x, 1, -1)


def _first(x: mx.array) -> mx.array:
    """Channels first."""
    return mx.moveaxis(x, -1, 1)


# --- the choice -------------------------------------------------------------------------------

COLUMNS = Variant("columns", _forward, _vjp)
MLX = differentiated_by_mlx("mx.conv_general", _mlx)
TRANSPOSED_COLUMNS = Variant("columns", _transposed_forward, _transposed_vjp)
TRANSPOSED_MLX = Variant("mx.conv_general", _mlx_transposed_forward, _mlx_transposed_vjp)
_HALF = {variant: through_float32(variant) for variant in (COLUMNS, TRANSPOSED_COLUMNS)}


def _choose(x: mx.array, weight: mx.array, columns: Variant, mlx: Variant) -> tuple[Variant | None, str]:
    if x.size == 0 or weight.size == 0:
        return None, "nothing to multiply"
    if not on_cpu():
        return mlx, "a GPU"
    return (_HALF[columns], "the CPU, a half") if is_half(x) else (columns, "the CPU")


def _select(x: mx.array, weight: mx.array, *params: int) -> tuple[Variant | None, str]:
    return _choose(x, weight, COLUMNS, MLX)


def _select_transposed(x: mx.array, weight: mx.array, *params: int) -> tuple[Variant | None, str]:
    return _choose(x, weight, TRANSPOSED_COLUMNS, TRANSPOSED_MLX)


conv = Kernel("conv", _reference, _select, arity=2)
conv_transpose = Kernel("conv_transpose", _transposed_reference, _select_transposed, arity=2)

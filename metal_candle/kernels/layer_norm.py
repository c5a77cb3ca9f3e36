"""Layer normalisation."""

from __future__ import annotations

import mlx.core as mx

from . import norm_launch
from .accurate_sum import total
from .custom import Program, Template, launch, scalar
from .kernel import Kernel, on_cpu
from .own import Own, Trial
from .rms_norm import row_sum
from .slices import by_rows
from .variant import Gradients, Outputs, Variant, differentiated_by_mlx, is_half, through_float32

# Measured on two x86-64 cores against mx.fast.layer_norm, which is the faster by up to 1.2 below this many elements,
# being fewer calls: with 32 rows of 576 it takes as long forward, 1.05 times as long with the gradients; with 128 and
# 512 rows 1.25 to 1.75 and 1.2 to 1.6 times as long, of bfloat16 1.35 to 1.5 and 1.15 to 1.55.
SMALL = 16384
# Elements from which a block of rows at a time, whose temporaries stay in the cache, is the faster, and nothing is
# saved for the gradients. Of 1024 rows of 576, 512 of 2048 and 4096 of 576 whole arrays take 0.8 to 6 times as long as
# blocks forward and 1.8 to 2.9 with all gradients, mx.fast.layer_norm 1.0 to 3.7 and 0.9 to 1.5.
LARGE = 2**19


def _reference(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float) -> mx.array:
    """``(x - mean) / sqrt(variance + eps) · weight + bias`` over the last dim; weight and bias ``(n,)`` or ``None``.

    All of one dtype. The variance is biased, eps is inside the root; halves are computed in float32. Ba et al. 2016,
    https://arxiv.org/abs/1607.06450.
    """
    wide = x.astype(mx.float32) if is_half(x) else x
    centred = wide - mx.mean(wide, axis=-1, keepdims=True)
    normed = centred * mx.rsqrt(mx.mean(mx.square(centred), axis=-1, keepdims=True) + eps)
    if weight is not None:
        normed = normed * weight
    return (normed if bias is None else normed + bias).astype(x.dtype)


def _normed(x: mx.array, eps: float) -> tuple[mx.array, mx.array, mx.array]:
    """x with mean 0 and variance 1, the mean ``(…, 1)`` and one over the root ``(…, 1)``."""
    part = 1 / x.shape[-1]
    mean = row_sum(x) * part
    centred = x - mean
    inverse = mx.rsqrt(row_sum(mx.square(centred)) * part + eps)
    return centred * inverse, mean, inverse


def _forward(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float) -> Outputs:
    normed, mean, inverse = _normed(x, eps)
    return _scaled(normed, weight, bias), mean, inverse


def _scaled(normed: mx.array, weight: mx.array | None, bias: mx.array | None) -> mx.array:
    if weight is not None:
        normed = normed * weight
    return normed if bias is None else normed + bias


def _vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, mx.array | None, mx.array | None],
    outputs: Outputs,
    needs: tuple[bool, ...],
    eps: float,
) -> Gradients:
    x, weight, _ = inputs
    of_x = of_weight = of_bias = None
    if needs[0] or needs[1]:
        if len(outputs) == 3:
            _, mean, inverse = outputs
            normed = (x - mean) * inverse
        else:
            normed, _, inverse = _normed(x, eps)
        if needs[0]:
            of_x = _of_x(cotangent, normed, inverse, weight)
        if needs[1]:
            of_weight = _over_rows(cotangent * normed)
    if needs[2]:
        of_bias = _over_rows(cotangent)
    return of_x, of_weight, of_bias


def _of_x(cotangent: mx.array, normed: mx.array, inverse: mx.array, weight: mx.array | None) -> mx.array:
    upstream = cotangent if weight is None else cotangent * weight
    part = 1 / normed.shape[-1]
    # What changes the mean or the variance is normalised away again.
    along = normed * (row_sum(upstream * normed) * part)
    return (upstream - row_sum(upstream) * part - along) * inverse


def _blocks_forward(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float) -> Outputs:
    return (by_rows(lambda rows: _scaled(_normed(rows, eps)[0], weight, bias), x),)


def _blocks_vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, mx.array | None, mx.array | None],
    outputs: Outputs,
    needs: tuple[bool, ...],
    eps: float,
) -> Gradients:
    x, weight, _ = inputs
    of_x = of_weight = None

    def of_rows(rows: mx.array, upstream: mx.array) -> mx.array:
        normed, _, inverse = _normed(rows, eps)
        return _of_x(upstream, normed, inverse, weight)

    if needs[0]:
        of_x = by_rows(of_rows, x, cotangent)
    if needs[1]:
        of_weight = _over_rows(by_rows(lambda rows, upstream: upstream * _normed(rows, eps)[0], x, cotangent))
    return of_x, of_weight, _over_rows(cotangent) if needs[2] else None


def _over_rows(x: mx.array) -> mx.array:
    """The sum over all dims but the last."""
    return total(x, tuple(range(x.ndim - 1))) if x.ndim > 1 else x


def _fast(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float) -> mx.array:
    return mx.fast.layer_norm(x, weight, bias, eps)


_CPU = Variant("sums by product", _forward, _vjp)
_HALF = through_float32(_CPU)
_BLOCKS = Variant("sums by product, blocks of rows", _blocks_forward, _blocks_vjp)
_BLOCKS_HALF = through_float32(_BLOCKS)
_FAST = differentiated_by_mlx("mx.fast.layer_norm", _fast)

_PROGRAM = Program("layer_norm", inputs=("x", "residual", "weight", "bias", "eps"), outputs=("normed", "total"))


def launched(
    x: mx.array, residual: mx.array | None, weight: mx.array | None, bias: mx.array | None, eps: float
) -> list[mx.array]:
    """The norm of x, or of x + residual, by our program, and that sum; without a residual the second is nothing."""
    number = scalar(eps)
    beside = [number if each is None else each for each in (residual, weight, bias)]
    how = norm_launch.how(tuple(x.shape), x.dtype, residual is not None, weight is not None, _flags(bias))
    return launch(_PROGRAM, [x, *beside, number], how)


def trial(x: mx.array, residual: bool, weight: mx.array | None, bias: mx.array | None) -> Trial:
    """The trial of ``launched`` for these arguments."""
    return norm_launch.trial(x, residual, (weight is not None, bias is not None), _flags(bias))


def _flags(bias: mx.array | None) -> Template:
    return (("BIAS", bias is not None),)


# MLX's reads a row three times on CUDA, on Metal above 6,656 elements; what that costs depends on the cache.
_OWN = Own(
    "one launch",
    lambda x, weight, bias, eps: (launched(x, None, weight, bias, eps)[0],),
    fits=lambda x, weight, bias, eps: norm_launch.unfit(x, None, weight=weight, bias=bias),
    wins=lambda x, weight, bias, eps: (
        False,
        "unmeasured: mx.fast.layer_norm is one launch too; a row it reads again is in the cache",
    ),
    trial=lambda x, weight, bias, eps: trial(x, False, weight, bias),
    vjp=_FAST.vjp,
)


def _select(x: mx.array, *rest: object) -> tuple[Variant | None, str]:
    if x.ndim == 0 or x.size == 0:
        return None, "no rows"
    if not on_cpu():
        return _FAST, "GPU"
    if x.dtype == mx.float64:
        # mx.fast.layer_norm computes it in float32.
        return _CPU, "float64"
    if x.size < SMALL:
        return _FAST, f"fewer than {SMALL} elements on the CPU"
    if x.size >= LARGE:
        return (_BLOCKS_HALF if is_half(x) else _BLOCKS), f"{LARGE} elements or more on the CPU"
    return (_HALF, "half precision on the CPU") if is_half(x) else (_CPU, "float32 on the CPU")


layer_norm = Kernel("layer_norm", _reference, _select, arity=3, own=_OWN)

"""Root-mean-square normalisation."""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np

from . import norm_launch
from .accurate_sum import total
from .custom import Program, launch, scalar
from .kernel import Kernel, on_cpu
from .own import Own
from .slices import in_blocks
from .variant import Gradients, Outputs, Variant, differentiated_by_mlx, is_half, through_float32

# Elements from which the gradients are computed for a block of rows at a time. Measured on two x86-64 cores, f32, in a
# chain of six norms with kept results, forward and both gradients: 1.6 to 1.8 times as fast for (1024, 576), 1.7 for
# (2048, 576), 1.8 for (512, 2048) and (1024, 2048), 1.7 to 1.9 for (4096, 576). The result itself is computed at once:
# in blocks it takes 0.8 to 1.1 times as long in such a chain, 0.9 to 2.2 between larger products, 0.3 to 1.4 where one
# norm is repeated, as the allocator's pages go.
LARGE = 2**19
# Widths up to which the ones of ``row_sum`` are kept: 256 KiB.
KEPT = 2**16


def _reference(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """``x / sqrt(mean(x²) + eps) · weight`` over the last dim; weight ``(n,)`` of x's dtype, or ``None``.

    Sums are taken in float32, eps is inside the root. Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """
    wide = x.astype(mx.float32) if is_half(x) else x
    normed = (wide * mx.rsqrt(mx.mean(mx.square(wide), axis=-1, keepdims=True) + eps)).astype(x.dtype)
    return normed if weight is None else normed * weight


def row_sum(x: mx.array) -> mx.array:
    """The sum over the last dim, kept: as a product with ones, 0.35 ns an element to 0.9 of ``mx.sum``."""
    n = x.shape[-1]
    return x @ (_ones(n) if n <= KEPT and x.dtype == mx.float32 else mx.ones((n, 1), dtype=x.dtype))


@lru_cache(maxsize=64)
def _ones(n: int) -> mx.array:
    # From NumPy, so that they are there at once: a value that MLX has yet to compute belongs to a thread's stream.
    return mx.array(np.ones((n, 1), np.float32))


def _forward(x: mx.array, weight: mx.array | None, eps: float) -> Outputs:
    inverse = mx.rsqrt(row_sum(mx.square(x)) * (1 / x.shape[-1]) + eps)
    normed = x * inverse
    return (normed if weight is None else normed * weight), inverse


def _vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, mx.array | None],
    outputs: Outputs,
    needs: tuple[bool, ...],
    eps: float,
) -> Gradients:
    x, weight = inputs
    inverse = outputs[1] if len(outputs) == 2 else _forward(x, None, eps)[1]
    of_weight = len(needs) > 1 and needs[1]

    def of_rows(rows: mx.array, upstream: mx.array, inverse: mx.array) -> Outputs:
        found: list[mx.array] = []
        if of_weight:
            found.append(total(upstream * (rows * inverse), range(rows.ndim - 1)))
        if needs[0]:
            upstream = upstream if weight is None else upstream * weight
            along = row_sum(upstream * rows) * (mx.square(inverse) * inverse * (-1 / rows.shape[-1]))
            found.append(upstream * inverse + rows * along)
        return tuple(found)

    if x.size < LARGE:
        found = list(of_rows(x, cotangent, inverse))
    else:
        parts = [list(column) for column in zip(*in_blocks(of_rows, x, cotangent, inverse))]
        found = [total(mx.stack(parts[0]), (0,))] if of_weight else []
        found += [mx.concatenate(parts[-1]).reshape(x.shape)] if needs[0] else []
    return tuple(found.pop() if need else None for need in needs)


def _fast(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    return mx.fast.rms_norm(x, weight, eps)


# Measured on (512, 576): 0.9 and 2.4 ns an element, forward and backward, to mx.fast.rms_norm's 1.7 and 3.5.
_CPU = Variant("sums by product", _forward, _vjp)
_HALF = through_float32(_CPU)
_GPU = differentiated_by_mlx("mx.fast.rms_norm", _fast)

_PROGRAM = Program("rms_norm", inputs=("x", "residual", "weight", "eps"), outputs=("normed", "total"))


def launched(x: mx.array, residual: mx.array | None, weight: mx.array | None, eps: float) -> list[mx.array]:
    """The norm of x, or of x + residual, by our program, and that sum; without a residual the second is nothing."""
    number = scalar(eps)
    inputs = [x, number if residual is None else residual, number if weight is None else weight, number]
    how = norm_launch.how(tuple(x.shape), x.dtype, residual is not None, weight is not None)
    return launch(_PROGRAM, inputs, how)


_OWN = Own(
    "one launch",
    lambda x, weight, eps: (launched(x, None, weight, eps)[0],),
    fits=lambda x, weight, eps: norm_launch.unfit(x, None, weight=weight),
    wins=lambda x, weight, eps: (False, "mx.fast.rms_norm is one launch too, and reads and writes each element once"),
    trial=lambda x, weight, eps: norm_launch.trial(x, False, (weight is not None,)),
    vjp=_GPU.vjp,
)


def _select(x: mx.array, weight: mx.array | None, eps: float) -> tuple[Variant | None, str]:
    if x.ndim == 0 or x.size == 0:
        return None, "no rows"
    if not on_cpu():
        return _GPU, "GPU"
    if x.dtype == mx.float32:
        return _CPU, "float32 on the CPU"
    return (_HALF, "half precision on the CPU") if is_half(x) else (_CPU, f"{x.dtype} on the CPU")


rms_norm = Kernel("rms_norm", _reference, _select, arity=2, own=_OWN)

"""Rotary position embedding.

The tables of cosines and sines are arguments, as in candle. MLX's own ``mx.fast.rope`` computes them from frequencies
and an offset instead, in float32: of width 64 and base 10,000 its results are off by 4e-4 at position 10,000 and 4e-3
at 100,000 (seen on the CPU), where the tables that ``models.rotary`` makes in float64 are right to the last digit. It
would save the reading of the tables, which all heads of all layers share. So models use tables, through this kernel.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from . import custom
from .kernel import Kernel
from .own import UNMEASURED, Own, Trial
from .samples import instantiation, is_small, normal
from .variant import Gradients, Outputs, Variant

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
# Heads and pairs of a thread, as in the source.
HEADS, PAIRS = 2, 4
THREADS = 256


def _reference(x: mx.array, cos: mx.array, sin: mx.array, interleaved: bool = False) -> mx.array:
    """Each pair ``(a, b)`` of ``x`` ``(…, t, d)`` turned by the angle of cos and sin ``(t, d/2)``.

    Tables ``(b, t, d/2)`` are for each of a batch ``(b, h, t, d)`` its own. The first half of d is paired with the
    second or, ``interleaved``, each element with its neighbour. Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """
    if cos.ndim == 3:
        cos, sin = mx.expand_dims(cos, 1), mx.expand_dims(sin, 1)
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        turned = mx.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
        return turned.reshape(x.shape)
    a, b = mx.split(x, 2, axis=-1)
    return mx.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _forward(x: mx.array, cos: mx.array, sin: mx.array, interleaved: bool = False) -> Outputs:
    return (_reference(x, cos, sin, interleaved),)


def _of_tables(
    cotangent: mx.array, inputs: Outputs, needs: tuple[bool, ...], interleaved: bool
) -> tuple[mx.array | None, ...]:
    """The gradients of cos and sin that are needed."""
    if not any(needs[1:]):
        return tuple(None for _ in needs[1:])
    x, cos, sin = inputs
    _, found = mx.vjp(lambda c, s: _reference(x, c, s, interleaved), [cos, sin], [cotangent])
    return tuple(gradient if need else None for gradient, need in zip(found, needs[1:]))


def _vjp(
    cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...], interleaved: bool = False
) -> Gradients:
    # The transpose of a rotation turns back.
    of_x = _reference(cotangent, inputs[1], -inputs[2], interleaved) if needs[0] else None
    return (of_x, *_of_tables(cotangent, inputs, needs, interleaved))


# On the CPU the composition takes 1.8 ns an element, mx.fast.rope 3.9.
_VARIANT = Variant("composition", _forward, _vjp)

PROGRAM = custom.Program("rope", ("x", "cosines", "sines", "sign"), ("turned",), contiguous=False)


@lru_cache(maxsize=256)
def _launch(
    shape: tuple[int, ...], four: tuple[int, int, int, int], dtype: mx.Dtype, interleaved: bool
) -> custom.Launch:
    batch, heads, rows, width = four
    places = rows * custom.ceil_div(width // 2, PAIRS)
    threads = min(custom.ceil_div(places, custom.SIMD) * custom.SIMD, THREADS)
    return custom.Launch(
        shapes=(shape,),
        dtypes=(dtype,),
        grid=(custom.ceil_div(places, threads) * threads, custom.ceil_div(heads, HEADS), batch),
        threadgroup=(threads, 1, 1),
        template=(("T", dtype), ("INTERLEAVED", interleaved)),
    )


def _four(x: mx.array) -> mx.array:
    """x with four dims; only more of them are made one, which may copy."""
    if x.ndim < 4:
        return mx.expand_dims(x, axis=tuple(range(4 - x.ndim)))
    return x if x.ndim == 4 else x.reshape(-1, *x.shape[-3:])


def _turned(x: mx.array, cos: mx.array, sin: mx.array, interleaved: bool, sign: float) -> mx.array:
    four = _four(x)
    how = _launch(x.shape, four.shape, x.dtype, interleaved)
    return custom.launch(PROGRAM, [four, cos, sin, custom.scalar(sign)], how)[0]


def _own_forward(x: mx.array, cos: mx.array, sin: mx.array, interleaved: bool = False) -> Outputs:
    return (_turned(x, cos, sin, interleaved, 1.0),)


def _own_vjp(
    cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...], interleaved: bool = False
) -> Gradients:
    of_x = _turned(cotangent, inputs[1], inputs[2], interleaved, -1.0) if needs[0] else None
    return (of_x, *_of_tables(cotangent, inputs, needs, interleaved))


def _fits(x: mx.array, cos: mx.array, sin: mx.array, interleaved: bool = False) -> str | None:
    shape = x.shape
    if x.dtype not in DTYPES or cos.dtype != x.dtype or sin.dtype != x.dtype:
        return f"x of {x.dtype}, tables of {cos.dtype} and {sin.dtype}"
    if len(shape) < 2 or shape[-1] % 2 or cos.shape != (shape[-2], shape[-1] // 2) or sin.shape != cos.shape:
        return f"x {shape}, tables {cos.shape} and {sin.shape}"
    if x.size == 0:
        return "no elements"
    heads = shape[-3] if len(shape) > 2 else 1
    batch = x.size // (heads * shape[-2] * shape[-1])
    if cos.size > custom.MOST_THREADS_OF_A_GRID or batch > custom.MOST_GROUPS or heads > custom.MOST_GROUPS * HEADS:
        return f"x {shape}: more than a grid holds"
    return None


def _wins(x: mx.array, cos: mx.array, sin: mx.array, interleaved: bool = False) -> tuple[bool, str]:
    # As MLX's operations four products, a difference, a sum and a concatenation of two copies; compiled, the two
    # halves are one launch, and the copies read and write them again.
    copied = ", if it need not be copied to have 4 dims" if x.ndim > 4 else ""
    return True, f"{UNMEASURED}: 1 launch to 8 (3 compiled), x read and written once to twice{copied}"


def _trial(x: mx.array, cos: mx.array, sin: mx.array, interleaved: bool = False) -> Trial:
    dtype, (rows, pairs) = x.dtype, cos.shape
    how = _launch(x.shape, _four(x).shape, dtype, interleaved)
    if is_small(*cos.shape):
        tables, heads = cos.shape, 5
        like = tuple(x.shape) if is_small(*x.shape) else (2, heads, rows, 2 * pairs)
    else:
        # One or two threads a row, as its pairs; of the largest threadgroup two.
        full, each = how.threadgroup[0] - custom.SIMD * (how.threadgroup[0] < THREADS), 1 + (pairs > PAIRS)
        tables = (full // each + 3, PAIRS * each - (pairs % PAIRS > 0))
        like = (2, 5, tables[0], 2 * tables[1])

    def arguments() -> tuple[mx.array, mx.array, mx.array, bool]:
        return normal(like, dtype), normal(tables, dtype, 1), normal(tables, dtype, 2), interleaved

    key = instantiation(how, (x.shape, dtype), (cos.shape, dtype))
    return Trial((*key, pairs % PAIRS == 0, pairs > PAIRS), arguments)


rope = Kernel(
    "rope",
    _reference,
    lambda *arguments: (_VARIANT, "the same operations, gradient by turning back"),
    arity=3,
    own=Own("one launch", _own_forward, _fits, _wins, _trial, _own_vjp),
)

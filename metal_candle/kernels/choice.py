"""Values where a condition holds, 0 elsewhere.

MLX's CPU back-end goes through a choice element by element. Of 2**20 float32 on one x86-64 core ``mx.where`` takes
5.8 ms, a product with the condition 0.7, of which 0.5 are the condition's own cast: as bytes it takes 0.1. In floats
the product would make NaN of 0 · inf, so the values' bits are multiplied, as integers.
"""

from __future__ import annotations

import mlx.core as mx

from .kernel import on_cpu

# Elements from which the product is quicker: below it three operations' calls cost more than they save.
SMALL = 2**14
_BITS = {2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


def or_zero(keep: mx.array, values: mx.array) -> mx.array:
    """``values`` where ``keep``, booleans or bytes 0 and 1 of the same shape, is not 0; elsewhere 0.

    Exact, infinities and NaN included. MLX cannot differentiate it: for what is a gradient already.
    """
    bits = _BITS.get(values.dtype.size)
    if bits is None or values.size < SMALL or keep.shape != values.shape or not on_cpu():
        return mx.where(keep, values, mx.array(0, values.dtype))
    return (values.view(bits) * as_bytes(keep)).view(values.dtype)


def as_bytes(condition: mx.array) -> mx.array:
    """A condition as bytes 0 and 1, whose &, | and ^ take an eighth of the time of those of booleans."""
    return condition.view(mx.uint8) if condition.dtype == mx.bool_ else condition

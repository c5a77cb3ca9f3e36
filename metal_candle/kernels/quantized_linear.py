"""Product with a quantised weight, and its gradient.

A weight is its codes ``(out, in · bits / 32)``, scales and biases ``(out, in / group)`` in MLX's affine quantisation;
in another of MLX's modes (mxfp4, mxfp8, nvfp4) codes and scales; or, with ``bits`` 32, one float32 array ``(out, in)``.

Everything is multiplied in float32, whatever the tensor's dtype: ``scale · code + bias`` with a bias of
``-128 · scale`` loses three bits of a half and more of a bfloat16. (float64, which MLX's quantised product does not
take, is multiplied in float64.)

MLX's CPU back-end unpacks the weight anew for every row of x. Measured on two x86-64 cores, a (1536, 1536) weight:
2.3 ms per row with 4 and with 8 bits against 5.6 ms for unpacking it once and 1 ms for multiplying then, so that up
to two rows go through the quantised product and more through the unpacked weight; with 5 bits, which MLX unpacks
ten times slower, 54 ms, it is 24 rows. Of 2, 3 and 6 bits a row took 2.8, 3.8 and 2.5 ms, unpacking 10, 34 and 75;
groups of 32, 64 and 128 were alike. The gradient of x always takes the unpacked weight there: its quantised
product was slower for all of 4, 5 and 8 bits. On a GPU both products stay quantised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import mlx.core as mx

from .kernel import on_cpu

GROUP = 32
DENSE = 32
"""The ``bits`` of a weight that is not quantised."""

AFFINE = "affine"

_ROWS = {2: 3, 3: 9, 4: 2, 5: 24, 6: 28, 8: 2, DENSE: 0}
# Elements that are unpacked at a time: 16 MB of float32.
_CHUNK = 1 << 22


def forward(x: mx.array, weight: Sequence[mx.array], bits: int, group: int = GROUP, mode: str = AFFINE) -> mx.array:
    """``x · weightᵀ`` in x's dtype: ``(…, in) -> (…, out)``."""
    rows, out = _rows(x), weight[0].shape[0]
    if _stays_quantised(x, bits, _ROWS[bits]):
        product = _product(rows, weight, bits, group, mode, transpose=True)
    else:
        parts = [rows @ part.T for part in _unpacked(weight, bits, group, mode, rows.dtype)]
        product = mx.concatenate(parts, axis=1) if parts else mx.zeros((len(rows), 0), rows.dtype)
    return product.astype(x.dtype).reshape(*x.shape[:-1], out)


def gradient(
    cotangent: mx.array, weight: Sequence[mx.array], bits: int, group: int = GROUP, mode: str = AFFINE
) -> mx.array:
    """``cotangent · weight``, the gradient of x in its dtype: ``(…, out) -> (…, in)``."""
    rows, width = _rows(cotangent), columns(weight, bits)
    if _stays_quantised(cotangent, bits, 0):
        product = _product(rows, weight, bits, group, mode, transpose=False)
    else:
        product, start = mx.zeros((len(rows), width), rows.dtype), 0
        for part in _unpacked(weight, bits, group, mode, rows.dtype):
            product = product + rows[:, start : start + len(part)] @ part
            start += len(part)
    return product.astype(cotangent.dtype).reshape(*cotangent.shape[:-1], width)


def columns(weight: Sequence[mx.array], bits: int) -> int:
    """The weight's ``in``."""
    return int(weight[0].shape[1] * 32 // bits)


def unpack(weight: Sequence[mx.array], bits: int, group: int = GROUP, mode: str = AFFINE) -> mx.array:
    """The weight's numbers, or those of some of its rows: float32 ``(…, in)``, exactly what its codes stand for."""
    if bits == DENSE:
        return weight[0]
    if mode != AFFINE:
        codes, scales = weight
        return mx.dequantize(codes, scales, group_size=group, bits=bits, mode=mode, dtype=mx.float32)
    codes, scales, biases = weight
    return mx.dequantize(codes, _wide(scales), _wide(biases), group_size=group, bits=bits)


def _unpacked(weight: Sequence[mx.array], bits: int, group: int, mode: str, dtype: mx.Dtype) -> Iterator[mx.array]:
    """The weight, some rows at a time, so that the float32 copy of a large quantised one never exists at once."""
    count = weight[0].shape[0]
    step = max(1, _CHUNK // max(1, columns(weight, bits))) if bits != DENSE or dtype != mx.float32 else max(1, count)
    for start in range(0, count, step):
        yield unpack([part[start : start + step] for part in weight], bits, group, mode).astype(dtype)


def _product(rows: mx.array, weight: Sequence[mx.array], bits: int, group: int, mode: str, transpose: bool) -> mx.array:
    if mode != AFFINE:
        codes, scales = weight
        return mx.quantized_matmul(rows, codes, scales, transpose=transpose, group_size=group, bits=bits, mode=mode)
    codes, scales, biases = weight
    return mx.quantized_matmul(
        rows, codes, _wide(scales), _wide(biases), transpose=transpose, group_size=group, bits=bits
    )


def _rows(x: mx.array) -> mx.array:
    """``(…, n)`` as a matrix in the dtype it is multiplied in."""
    wide = mx.float64 if x.dtype == mx.float64 else mx.float32
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).astype(wide)


def _stays_quantised(x: mx.array, bits: int, rows_on_cpu: int) -> bool:
    rows = math.prod(x.shape[:-1])
    if bits == DENSE or x.dtype == mx.float64 or not rows:
        return False
    return rows <= rows_on_cpu or not on_cpu()


def _wide(numbers: mx.array) -> mx.array:
    return numbers.astype(mx.float32)

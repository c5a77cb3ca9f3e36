"""Product with a weight in MLX's affine quantisation, groups of 32, and its gradient.

Everything is multiplied in float32, whatever the tensor's dtype: ``scale · code + bias`` with a bias of
``-128 · scale`` loses three bits of a half and more of a bfloat16. (float64, which MLX's quantised product does not
take, is multiplied in float64.)

MLX's CPU back-end unpacks the weight anew for every row of x. Measured on two x86-64 cores, a (1536, 1536) weight:
2.3 ms per row with 4 and with 8 bits against 5.6 ms for unpacking it once and 1 ms for multiplying then, so that up
to two rows go through the quantised product and more through the unpacked weight; with 5 bits, which MLX unpacks
ten times slower, 54 ms, it is 24 rows. The gradient of x always takes the unpacked weight there: its quantised
product was slower for all of 4, 5 and 8 bits. On a GPU both products stay quantised.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx

from .linear import as_rows

GROUP = 32
_ROWS = {4: 2, 5: 24, 8: 2}
# Elements that are unpacked at a time: 16 MB of float32.
_CHUNK = 1 << 22


def forward(x: mx.array, codes: mx.array, scales: mx.array, biases: mx.array, bits: int) -> mx.array:
    """``x · weightᵀ`` in x's dtype: x ``(…, in)``, codes ``(out, in · bits / 32)``, scales and biases ``(out, in / 32)``."""
    rows = as_rows(x)
    if x.dtype != mx.float64 and (not _on_cpu() or len(rows) <= _ROWS[bits]):
        product = mx.quantized_matmul(
            rows.astype(mx.float32), codes, _wide(scales), _wide(biases), transpose=True, group_size=GROUP, bits=bits
        )
    else:
        wide = rows.astype(_computed_in(x))
        parts = [wide @ part.T for part in _unpacked(codes, scales, biases, bits, wide.dtype)]
        product = mx.concatenate(parts, axis=1) if parts else mx.zeros((len(rows), 0), wide.dtype)
    return product.astype(x.dtype).reshape(*x.shape[:-1], codes.shape[0])


def gradient(cotangent: mx.array, codes: mx.array, scales: mx.array, biases: mx.array, bits: int) -> mx.array:
    """``cotangent · weight``: the gradient of x, in the cotangent's dtype: ``(…, out) -> (…, in)``."""
    rows = as_rows(cotangent)
    if cotangent.dtype != mx.float64 and not _on_cpu():
        product = mx.quantized_matmul(
            rows.astype(mx.float32), codes, _wide(scales), _wide(biases), transpose=False, group_size=GROUP, bits=bits
        )
    else:
        wide = rows.astype(_computed_in(cotangent))
        product, start = mx.zeros((len(rows), scales.shape[1] * GROUP), wide.dtype), 0
        for part in _unpacked(codes, scales, biases, bits, wide.dtype):
            product = product + wide[:, start : start + len(part)] @ part
            start += len(part)
    return product.astype(cotangent.dtype).reshape(*cotangent.shape[:-1], product.shape[1])


def unpack(codes: mx.array, scales: mx.array, biases: mx.array, bits: int) -> mx.array:
    """The numbers, float32 ``(…, in)``, exactly those the blocks stand for."""
    return mx.dequantize(codes, _wide(scales), _wide(biases), group_size=GROUP, bits=bits)


def _unpacked(
    codes: mx.array, scales: mx.array, biases: mx.array, bits: int, dtype: mx.Dtype
) -> Iterator[mx.array]:
    """The weight, some rows at a time, so that the float32 copy of a large one never exists at once."""
    step = max(1, _CHUNK // max(1, scales.shape[1] * GROUP))
    for start in range(0, codes.shape[0], step):
        rows = slice(start, start + step)
        yield unpack(codes[rows], scales[rows], biases[rows], bits).astype(dtype)


def _wide(numbers: mx.array) -> mx.array:
    return numbers.astype(mx.float32)


def _computed_in(x: mx.array) -> mx.Dtype:
    return mx.float64 if x.dtype == mx.float64 else mx.float32


def _on_cpu() -> bool:
    # mx.stream() changes the default device too, so this is the one in use.
    return bool(mx.default_device().type == mx.cpu)

"""Matrix products that keep their speed in half precision on the CPU.

No BLAS multiplies halves, so MLX's CPU back-end does it with plain loops on Linux, at 3 to 5 GFLOP/s.
Converting the factors to float32, multiplying there and converting the product back is rounded once, as
the loops are, which add up in float32 too.

Measured on two x86-64 cores with OpenBLAS, (m, 576) by a transposed (1536, 576): 1.9 times faster for m = 1
in either half, 5 (float16) and 7 (bfloat16) times for m = 16, 16 and 18 times for m = 128. With MLX's own
BLAS it takes twice as long for m >= 16, so it is done only where another one was loaded.
"""

from __future__ import annotations

from math import prod

import mlx.core as mx

from .. import blas
from .kernel import on_cpu

HALVES = (mx.float16, mx.bfloat16)


def as_rows(x: mx.array) -> mx.array:
    """``(…, n)`` as a matrix of rows of n, which may be 0, so that one product runs over all of them."""
    if x.ndim == 2:
        return x
    # Not -1: MLX cannot tell how many rows of 0 elements there are.
    *leading, n = x.shape
    return x.reshape(prod(leading), n)


def matmul(a: mx.array, b: mx.array) -> mx.array:
    """``a @ b``: ``(…, m, k), (…, k, n) -> (…, m, n)``, batches broadcast, in the factors' dtype.

    On the CPU, given an optimised BLAS, two factors of the same half precision are multiplied in
    float32. Raises ``ValueError``, as ``mx.matmul`` does, if the shapes do not fit.
    """
    if not _through_float32(a, b):
        return mx.matmul(a, b)
    return mx.matmul(a.astype(mx.float32), b.astype(mx.float32)).astype(a.dtype)


def addmm(c: mx.array, a: mx.array, b: mx.array, alpha: float = 1.0, beta: float = 1.0) -> mx.array:
    """``alpha * (a @ b) + beta * c``: ``(…, m, k), (…, k, n) -> (…, m, n)``, ``c`` broadcast to it.

    On the CPU, given an optimised BLAS, operands of the same half precision are added up in float32 and
    rounded once. Raises ``ValueError``, as ``mx.addmm`` does, if the shapes do not fit.
    """
    if a.dtype == mx.float64:
        # mx.addmm rounds alpha and beta to float32.
        return alpha * (a @ b) + beta * c
    if not _through_float32(a, b, c):
        return mx.addmm(c, a, b, alpha, beta)
    c32, a32, b32 = (operand.astype(mx.float32) for operand in (c, a, b))
    return mx.addmm(c32, a32, b32, alpha, beta).astype(a.dtype)


def _through_float32(*operands: mx.array) -> bool:
    dtype = operands[0].dtype
    # float32 first, which is what is asked most: a search among the halves compares two dtypes more.
    if dtype == mx.float32 or dtype not in HALVES or any(operand.dtype != dtype for operand in operands):
        return False
    return on_cpu() and blas.status().path is not None

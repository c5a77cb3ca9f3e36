"""Small measurements of this machine, for ``metal-candle doctor``."""

from __future__ import annotations

import statistics
import time


def measure_matmul(size: int = 512, repeats: int = 7) -> float:
    """GFLOP/s of a float32 ``(size, size)`` matrix product on MLX's default device.

    The median of ``repeats`` runs after one to warm up; each is waited for. Takes a tenth of a second with
    an optimised BLAS, half a second with the reference one.
    """
    import mlx.core as mx

    a, b = (mx.random.normal((size, size), key=mx.random.key(seed)) for seed in (0, 1))
    mx.eval(a, b, a @ b)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(a @ b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds) / 1e9

"""RMS norm: this library's eager, lazy and compiled form against ``mx.fast.rms_norm``, taking turns.

python examples/rmsnorm_bench.py [--rounds 30]

Ratios are what to look at: times are this machine's, at this moment. metal-candle (Rust): rmsnorm_bench.
"""

from __future__ import annotations

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, compat

import mlx.core as mx
from taking_turns import heading, line, rounds_asked_for

compiled = mc.compile(lambda xs, alpha: compat.rms_norm(xs, alpha, 1e-5))


def compare(shape: tuple[int, ...]) -> None:
    """One line of the table."""
    x, alpha = Tensor.randn(0.0, 1.0, shape), Tensor.randn(1.0, 0.1, shape[-1])
    array, weight = x.mlx(), alpha.mlx()
    forms = {
        "mlx": lambda: mx.fast.rms_norm(array, weight, 1e-5),
        "eager": lambda: compat.rms_norm(x, alpha, 1e-5).mlx(),
        "lazy": lambda: compat.rms_norm(LazyTensor.from_tensor(x), alpha, 1e-5).eval().mlx(),
        "compiled": lambda: compiled(x, alpha).mlx(),
    }
    line(str(shape), forms, ROUNDS)


ROUNDS = rounds_asked_for(__doc__)
mc.Device.default().set_seed(0)
heading("shape", ROUNDS)
for shape in [(1, 512), (64, 1024), (4, 128, 576), (1, 16384)]:
    compare(shape)

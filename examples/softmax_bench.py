"""Softmax: this library's eager, lazy and compiled form against ``mx.softmax``, taking turns.

python examples/softmax_bench.py [--rounds 30]

Ratios are what to look at: times are this machine's, at this moment. A single operation leaves a graph nothing to
rewrite; lora_layer_bench.py has chains. metal-candle (Rust): softmax_bench.
"""

from __future__ import annotations

import metal_candle as mc
from metal_candle import LazyTensor, Tensor

import mlx.core as mx
from taking_turns import heading, line, rounds_asked_for

compiled = mc.compile(lambda xs: xs.softmax(-1))


def compare(shape: tuple[int, ...]) -> None:
    """One line of the table."""
    x = Tensor.randn(0.0, 1.0, shape)
    array = x.mlx()
    forms = {
        "mlx": lambda: mx.softmax(array, axis=-1),
        "eager": lambda: x.softmax(-1).mlx(),
        "lazy": lambda: LazyTensor.from_tensor(x).softmax(-1).eval().mlx(),
        "compiled": lambda: compiled(x).mlx(),
    }
    line(str(shape), forms, ROUNDS)


ROUNDS = rounds_asked_for(__doc__)
mc.Device.default().set_seed(0)
heading("shape", ROUNDS)
for shape in [(1, 128), (64, 1024), (4, 12, 64, 64), (1, 49152)]:
    compare(shape)

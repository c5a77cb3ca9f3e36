"""LoRA layers: eager, lazy and compiled against the two products written in MLX, taking turns.

python examples/lora_layer_bench.py [--rounds 30]

Ratios are what to look at: times are this machine's, at this moment. Plain MLX is lazy as well: it computes a
chain at once, the eager form layer by layer. The difference is relative to the largest number. metal-candle (Rust):
lora_layer_bench.
"""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor
from metal_candle.training import LoRAConfig, LoRALayer

import mlx.core as mx
from taking_turns import heading, line, rounds_asked_for


def compare(size: int, rows: int, count: int) -> None:
    """One line of the table: a chain of so many layers of ``size`` to ``size``, over so many rows."""
    layers = [LoRALayer(size, size, LoRAConfig(rank=8, alpha=16.0)) for _ in range(count)]
    for layer in layers:
        layer.lora_b().set(Tensor.randn(0.0, 0.1, (8, size)))  # as after some training; B starts at zero
    factors = [(layer.lora_a().mlx(), layer.lora_b().mlx(), layer.config().scaling()) for layer in layers]
    x = Tensor.randn(0.0, 1.0, (rows, size))
    array = x.mlx()

    def plain() -> mx.array:
        xs = array
        for a, b, scaling in factors:
            xs = (xs @ a) @ b * scaling
        return xs

    def chain(xs: Any) -> Any:
        """Eager for an eager tensor, lazy for a lazy one."""
        for layer in layers:
            xs = layer.forward(xs)
        return xs

    compiled = mc.compile(chain)
    forms = {
        "mlx": plain,
        "eager": lambda: chain(x).mlx(),
        "lazy": lambda: chain(LazyTensor.from_tensor(x)).eval().mlx(),
        "compiled": lambda: compiled(x).mlx(),
    }
    line(f"{size}, {rows} row{'s' if rows > 1 else ''}, x {count}", forms, ROUNDS)


ROUNDS = rounds_asked_for(__doc__)
mc.Device.default().set_seed(0)
heading("size, rows, layers", ROUNDS)
for size in (512, 1024, 2048):
    for rows, count in ((1, 1), (64, 1), (64, 8)):
        compare(size, rows, count)

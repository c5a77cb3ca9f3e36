"""LoRA layers: eager, lazy and compiled against the two products written in MLX, taking turns.

python examples/lora_layer_bench.py [--rounds 30]

Ratios are what to look at: times are this machine's, at this moment. Plain MLX is lazy as well: it computes a
chain at once, the eager form layer by layer. The difference is relative to the largest number. metal-candle (Rust):
lora_layer_bench.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import metal_candle as mc  # before mlx.core: on Linux it loads a fast BLAS for MLX
from metal_candle import LazyTensor, Tensor
from metal_candle.training import LoRAConfig, LoRALayer

import mlx.core as mx

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=30)
arguments = parser.parse_args()


def medians(forms: dict[str, Callable[[], mx.array]]) -> dict[str, float]:
    """Median microseconds of each form; they take turns, so that a busy moment meets all of them."""
    samples: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(arguments.rounds + 2):
        for name, form in forms.items():
            start = time.perf_counter()
            mx.eval(form())  # MLX returns before it has computed
            if turn >= 2:  # the first turns record plans and compile kernels
                samples[name].append((time.perf_counter() - start) * 1e6)
    return {name: median(values) for name, values in samples.items()}


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
    label = f"{size}, {rows} row{'s' if rows > 1 else ''}, x {count}"
    times = medians(forms)
    eager, lazy, replayed = (times[name] / times["mlx"] for name in ("eager", "lazy", "compiled"))
    difference = (mx.abs(forms["compiled"]() - plain()).max() / mx.abs(plain()).max()).item()
    print(f"{label:22}{times['mlx']:>10.0f}{eager:>14.2f}{lazy:>13.2f}{replayed:>17.2f}{difference:>13.1e}")


mc.Device.default().set_seed(0)
print(f"{mc.Device.default()}; medians of {arguments.rounds}")
columns = f"{'mlx, us':>10}{'eager / mlx':>14}{'lazy / mlx':>13}{'compiled / mlx':>17}{'difference':>13}"
print(f"{'size, rows, layers':22}{columns}")
for size in (512, 1024, 2048):
    for rows, count in ((1, 1), (64, 1), (64, 8)):
        compare(size, rows, count)

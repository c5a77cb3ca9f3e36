"""Softmax: this library's eager, lazy and compiled form against ``mx.softmax``, taking turns.

python examples/softmax_bench.py [--rounds 30]

Ratios are what to look at: times are this machine's, at this moment. A single operation leaves a graph nothing to
rewrite; lora_layer_bench.py has chains. metal-candle (Rust): softmax_bench.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import metal_candle as mc  # before mlx.core: on Linux it loads a fast BLAS for MLX
from metal_candle import LazyTensor, Tensor

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
    times = medians(forms)
    eager, lazy, replayed = (times[name] / times["mlx"] for name in ("eager", "lazy", "compiled"))
    difference = mx.abs(forms["compiled"]() - forms["mlx"]()).max().item()
    print(f"{shape!s:18}{times['mlx']:>10.0f}{eager:>14.2f}{lazy:>13.2f}{replayed:>17.2f}{difference:>13.1e}")


mc.Device.default().set_seed(0)
print(f"{mc.Device.default()}; medians of {arguments.rounds}")
print(f"{'shape':18}{'mlx, us':>10}{'eager / mlx':>14}{'lazy / mlx':>13}{'compiled / mlx':>17}{'difference':>13}")
for shape in [(1, 128), (64, 1024), (4, 12, 64, 64), (1, 49152)]:
    compare(shape)

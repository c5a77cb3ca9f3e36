"""What the three benches share: forms of one computation that take turns, and a line of their table.

Imported by lora_layer_bench.py, rmsnorm_bench.py and softmax_bench.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

from metal_candle import Device  # before mlx.core: on Linux it loads a fast BLAS for MLX

import mlx.core as mx

Form = Callable[[], mx.array]


def rounds_asked_for(documentation: str | None) -> int:
    """What ``--rounds`` says on the command line; ``documentation`` is what ``--help`` shows."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    return int(parser.parse_args().rounds)


def medians(forms: dict[str, Form], rounds: int) -> dict[str, float]:
    """Median microseconds of each form; they take turns, so that a busy moment meets all of them."""
    samples: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 2):
        for name, form in forms.items():
            start = time.perf_counter()
            mx.eval(form())  # MLX returns before it has computed
            if turn >= 2:  # the first turns record plans and compile kernels
                samples[name].append((time.perf_counter() - start) * 1e6)
    return {name: median(values) for name, values in samples.items()}


def heading(label: str, rounds: int) -> None:
    """Print where is measured, and the names of the columns."""
    print(f"{Device.default()}; medians of {rounds}")
    columns = f"{'mlx, us':>10}{'eager / mlx':>14}{'lazy / mlx':>13}{'compiled / mlx':>17}{'difference':>13}"
    print(f"{label:22}{columns}")


def line(label: str, forms: dict[str, Form], rounds: int) -> None:
    """Measure "mlx", "eager", "lazy" and "compiled", and print MLX's time, the others' ratios to it, and how far the
    compiled result is from MLX's, relative to MLX's largest number."""
    times = medians(forms, rounds)
    eager, lazy, compiled = (times[name] / times["mlx"] for name in ("eager", "lazy", "compiled"))
    expected = forms["mlx"]()
    difference = (mx.abs(forms["compiled"]() - expected).max() / mx.abs(expected).max()).item()
    print(f"{label:22}{times['mlx']:>10.0f}{eager:>14.2f}{lazy:>13.2f}{compiled:>17.2f}{difference:>13.1e}")

"""What a tensor operation costs beside the MLX call it becomes: recorded and lowered, eager, and the import.

    python benchmarks/tensor_overhead.py [--rounds 41] [--calls 500]

All sides take turns in one run, so that what else the machine does falls on each; medians are printed.
"Recorded" is the tensor method alone; "lowered" is what `eval()` does before MLX computes; "more" is both together
less the raw call, per operation. "Eager" is 20 calls of the tensor method against 20 raw calls with an `mx.eval` each,
until all results are there: the eager tensor does not wait for small ones. "Waited for" reads every result at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import metal_candle  # noqa: F401  (before mlx.core: it loads the BLAS)
from metal_candle import LazyTensor, Tensor
from metal_candle.graph.evaluate import lower

import mlx.core as mx
from measure import Side, alternate, commit, device, head, row, versions


@dataclass
class Case:
    """One operation of a tensor and another, as MLX and as a tensor method."""

    label: str
    raw: Callable[[mx.array, mx.array], mx.array]
    method: Callable[[Any, Any], Any]


CASES = [
    Case("sin", lambda x, y: mx.sin(x), lambda x, y: x.sin()),
    Case("x * 2", lambda x, y: x * 2.0, lambda x, y: x * 2.0),
    Case("x + y", lambda x, y: x + y, lambda x, y: x + y),
    Case("mul", mx.multiply, lambda x, y: x.mul(y)),
    Case("matmul", mx.matmul, lambda x, y: x.matmul(y)),
    Case("transpose", lambda x, y: mx.swapaxes(x, 0, 1), lambda x, y: x.transpose(0, 1)),
    Case("reshape", lambda x, y: mx.reshape(x, (-1, 2)), lambda x, y: x.reshape((-1, 2))),
    Case("softmax", lambda x, y: mx.softmax(x, axis=-1), lambda x, y: x.softmax(-1)),
    Case("sum", lambda x, y: mx.sum(x, axis=1, keepdims=True), lambda x, y: x.sum_keepdim(1)),
    Case("t[1:]", lambda x, y: x[1:], lambda x, y: x[1:]),
]


def medians(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median time of each side, in seconds; they take turns."""
    times = alternate({name: Side(run) for name, run in sides.items()}, rounds)
    return {name: each.median() for name, each in times.items()}


def recording(case: Case, calls: int, rounds: int) -> tuple[float, float, float]:
    """Microseconds of the raw call, of recording, of lowering, each per operation."""
    x, y = mx.ones((4, 4)), mx.ones((4, 4))
    mx.eval(x, y)
    lazy, other = LazyTensor.from_mlx(x), LazyTensor.from_mlx(y)
    kept: list[Any] = []

    def raw() -> None:
        kept[:] = [case.raw(x, y) for _ in range(calls)]

    def record() -> None:
        kept[:] = [case.method(lazy, other) for _ in range(calls)]

    def lowering() -> None:
        lower([tensor._node for tensor in recorded])

    recorded = [case.method(lazy, other) for _ in range(calls)]
    found = medians({"raw": raw, "record": record, "lower": lowering}, rounds)
    return tuple(found[name] / calls * 1e6 for name in ("raw", "record", "lower"))  # type: ignore[return-value]


def eager(case: Case, size: int, rounds: int) -> tuple[float, float]:
    """Time of eager methods by that of raw calls with ``mx.eval``: in a row, and each waited for."""
    x = mx.random.normal((size, size))
    mx.eval(x)
    tensor = Tensor.from_mlx(x)
    repeats = range(20)

    def raw() -> None:
        for _ in repeats:
            mx.eval(case.raw(x, x))

    def in_a_row() -> None:
        for _ in repeats:
            result = case.method(tensor, tensor)
        mx.eval(result.mlx())

    def waited_for() -> None:
        for _ in repeats:
            mx.eval(case.method(tensor, tensor).mlx())

    found = medians({"raw": raw, "row": in_a_row, "wait": waited_for}, rounds)
    return found["row"] / found["raw"], found["wait"] / found["raw"]


def importing(rounds: int) -> dict[str, float]:
    """Milliseconds of whole processes that import one or the other."""
    programs = {
        "import mlx.core": "import mlx.core",
        "import metal_candle": "import metal_candle",
        "import mlx.core, numpy": "import mlx.core, numpy",
        "from metal_candle import Tensor": "from metal_candle import Tensor",
    }
    # As after an installation: compiled once, whatever this shell's settings.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def process(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, env=environment)

    sides = {name: process(code) for name, code in programs.items()}
    for side in sides.values():
        side()
    return {name: seconds * 1e3 for name, seconds in medians(sides, rounds).items()}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41, help="turns each side takes")
    parser.add_argument("--calls", type=int, default=500, help="operations recorded in a turn")
    options = parser.parse_args()
    print(f"{device()}\n{versions()}; commit {commit()}\n")
    sizes = (4, 256)
    titles = [f"{what} {size}x{size}" for size in sizes for what in ("eager", "waited for")]
    print(head(["operation", "raw µs", "recorded µs", "lowered µs", "more µs", *titles]))
    for case in CASES:
        raw, record, low = recording(case, options.calls, options.rounds)
        ratios = [ratio for size in sizes for ratio in eager(case, size, options.rounds)]
        cells = [f"{value:.2f}" for value in (raw, record, low, record + low - raw, *ratios)]
        print(row([f"`{case.label}`", *cells]), flush=True)
    times = importing(max(5, options.rounds // 4))
    print("\n" + head(["a process that runs", "ms", "more than `import mlx.core`"]))
    for name, milliseconds in times.items():
        print(row([f"`{name}`", f"{milliseconds:.0f}", f"{milliseconds - times['import mlx.core']:.0f}"]))


if __name__ == "__main__":
    main()

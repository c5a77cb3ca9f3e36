"""The operations and patterns of the guide from v1 to v2: eager, lazy, compiled, and as MLX alone does them.

    python benchmarks/patterns.py [--rounds 101] [--only chain softmax] [--csv]

Sides: "eager" is the line of v1; "lazy" lifts, records and evaluates once; "compiled" replays with
``metal_candle.compile``; "mlx" is the same written with ``mlx.core``, evaluated once. All end with the result computed.
In each round every side takes one turn, in random order; before that the sides' results are compared once. Ratios are
to eager, round by round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import metal_candle as mc  # before mlx.core: it loads the BLAS
from metal_candle import LazyTensor, Tensor, compat
from metal_candle.training import LoRAConfig, LoRALayer

import mlx.core as mx
import numpy as np
from measure import Side, Times, alternate, append, commit, device, head, load, repeats_for, row, rows_of, versions

SIZE, RANK = 512, 8
TOLERANCE = 1e-4


def layer() -> LoRALayer:
    """A LoRA layer whose B is not zero."""
    made = LoRALayer(SIZE, SIZE, LoRAConfig(rank=RANK))
    made.lora_b().set(Tensor.randn(0.0, 0.1, (RANK, SIZE)))
    return made


def mlx_lora(made: LoRALayer) -> Callable[[mx.array], mx.array]:
    """The layer's arithmetic in MLX."""
    a, b, scale = made.lora_a().mlx(), made.lora_b().mlx(), made.config().scaling()
    return lambda x: ((x @ a) @ b) * scale


def cases() -> Iterator[tuple[str, Callable[[Any], Any], Callable[[mx.array], mx.array], list[Tensor]]]:
    """Name, the function on our tensors of either kind, the same on MLX's arrays, and the inputs of one run."""
    mc.Device.default().set_seed(0)
    one, two, alpha = layer(), layer(), Tensor.ones(SIZE)
    first, second, weight = mlx_lora(one), mlx_lora(two), alpha.mlx()

    def chain(x: Any) -> Any:
        return two.forward(compat.rms_norm(one.forward(x), alpha, 1e-5))

    def mlx_chain(x: mx.array) -> mx.array:
        return second(mx.fast.rms_norm(first(x), weight, 1e-5))

    row_, rows = Tensor.randn(0.0, 1.0, (1, SIZE)), Tensor.randn(0.0, 1.0, (32, SIZE))
    yield "LoRA forward, 1 row", one.forward, first, [row_]
    yield "LoRA forward, 32 rows", one.forward, first, [rows]
    yield "chain of 2 LoRA", lambda x: two.forward(one.forward(x)), lambda x: second(first(x)), [row_]
    yield "LoRA, RMS norm, LoRA, 1 row", chain, mlx_chain, [row_]
    yield "LoRA, RMS norm, LoRA, 32 rows", chain, mlx_chain, [rows]
    yield "softmax, 1 row", lambda x: x.softmax(-1), lambda x: mx.softmax(x, axis=-1), [row_]
    yield "RMS norm, 1 row", lambda x: x.rms_norm(1e-5), lambda x: mx.fast.rms_norm(x, None, 1e-5), [row_]
    batch = [Tensor.randn(0.0, 1.0, (1, SIZE)) for _ in range(8)]
    yield "batch of 8 chains", chain, mlx_chain, batch


def sides_of(
    function: Callable[[Any], Any], plain: Callable[[mx.array], mx.array], inputs: list[Tensor]
) -> dict[str, Side]:
    """The sides, once their results agree. Ends the program where they do not."""
    arrays = [each.mlx() for each in inputs]
    compiled = mc.compile(lambda xs: [function(x) for x in xs])

    def finish(results: list[Tensor]) -> list[mx.array]:
        values = [result.mlx() for result in results]
        mx.eval(values)  # a small eager result may still be on its way
        return values

    def mlx_() -> list[mx.array]:
        results = [plain(array) for array in arrays]
        mx.eval(results)
        return results

    runs: dict[str, Callable[[], list[mx.array]]] = {
        "eager": lambda: finish([function(x) for x in inputs]),
        "lazy": lambda: finish(mc.eval_all([function(LazyTensor.from_tensor(x)) for x in inputs])),
        "compiled": lambda: finish(compiled(inputs)),
        "mlx": mlx_,
    }
    want = [np.array(array) for array in mlx_()]
    for name, run in runs.items():
        error = max(float(np.abs(np.array(got) - array).max()) for got, array in zip(run(), want))
        if not error <= TOLERANCE:
            raise SystemExit(f"{name}: differs from mlx by {error:g}")
    return {name: Side(run, repeats_for(run, 2e-3, 200)) for name, run in runs.items()}


def cell(times: tuple[float, float, float], digits: int = 2) -> str:
    """A median and, in parentheses, the percentiles."""
    middle, low, high = (f"{value:.{digits}f}" for value in times)
    return f"{middle} ({low}–{high})"


def line(name: str, times: dict[str, Times]) -> str:
    """A row of the table."""
    return row([name, *(cell(times[side].ratio(times["eager"])) for side in ("lazy", "compiled", "mlx"))])


def main() -> None:
    """Measure, print the table and write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=101, help="turns each side takes")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name has one of these words")
    results = Path(__file__).with_name("results.csv")
    parser.add_argument("--csv", type=Path, nargs="?", const=results, help=f"append rows (default: {results.name})")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds takes 1 or more")
    print(f"{device()}\n{versions()}; commit {commit()}\n{load()}\n")
    print(head(["case", "lazy / eager", "compiled / eager", "mlx / eager"]))
    for name, function, plain, inputs in cases():
        if not any(word in name for word in options.only):
            continue
        sides = sides_of(function, plain, inputs)
        times = alternate(sides, options.rounds)
        print(line(name, times), flush=True)
        if options.csv:
            append(options.csv, rows_of("patterns", name, times, sides, "eager"))
    print("\n" + load())


if __name__ == "__main__":
    main()

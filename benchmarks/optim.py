"""One step of each optimizer against ``mlx.optimizers``: many small matrices, as of LoRA, and a few large ones.

    python benchmarks/optim.py [--rounds 31] [--only small] [--csv]

Sides: "mlx" is ``apply_gradients`` of ``mlx.optimizers``, "eager" is our ``step(grads)``, "compiled" the same inside
``metal_candle.compile``; each ends with variables and state computed. MLX's Adam corrects its bias, as ours does. In
each round every side takes one turn, in random order; before that the sides' results are compared once. Tables hold
medians over the rounds with the 20th and 80th percentiles, ratios are to mlx, round by round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metal_candle as mc  # before mlx.core: it loads the BLAS
from metal_candle import Tensor, Var, nn

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np
from measure import Side, Times, alternate, append, commit, device, head, load, row, rows_of, versions

CASES: dict[str, list[tuple[int, int]]] = {"small": [(16, 64), (64, 16)] * 200, "large": [(1024, 1024)] * 4}
NAMES = {"small": "400 of 16 x 64", "large": "4 of 1024 x 1024"}
RATE = 1e-3
OPTIMIZERS: dict[str, tuple[Callable[[list[Var]], Any], Callable[[], Any]]] = {
    "sgd": (lambda vars: nn.SGD(vars, RATE), lambda: optimizers.SGD(RATE)),
    "momentum": (
        lambda vars: nn.SGD(vars, nn.ParamsSGD(RATE, momentum=0.9)),
        lambda: optimizers.SGD(RATE, momentum=0.9),
    ),
    "adam": (lambda vars: nn.Adam.new_lr(vars, RATE), lambda: optimizers.Adam(RATE, bias_correction=True)),
    "adamw": (lambda vars: nn.AdamW.new_lr(vars, RATE), lambda: optimizers.AdamW(RATE, bias_correction=True)),
    "muon": (lambda vars: nn.Muon(vars, RATE), lambda: optimizers.Muon(RATE)),
}


def sides_of(name: str, case: str) -> dict[str, Side]:
    """The sides, after a few steps of each that have to agree. Ends the program where they do not."""
    rng = np.random.default_rng(0)
    starts = [rng.standard_normal(shape).astype(np.float32) for shape in CASES[case]]
    values = [rng.standard_normal(shape).astype(np.float32) for shape in CASES[case]]
    gradients = [Tensor(value) for value in values]
    make, theirs = OPTIMIZERS[name]
    eager_vars, compiled_vars = [Var(start) for start in starts], [Var(start) for start in starts]
    eager_optimizer, compiled_optimizer = make(eager_vars), make(compiled_vars)
    eager_gradients = dict(zip(eager_vars, gradients))

    def eager() -> None:
        eager_optimizer.step(eager_gradients)

    replay = mc.compile(lambda given: compiled_optimizer.step(dict(zip(compiled_vars, given))))

    def compiled() -> None:
        replay(gradients)

    rule = theirs()
    held = {"parameters": {str(i): mx.array(start) for i, start in enumerate(starts)}}
    mlx_gradients = {str(i): mx.array(value) for i, value in enumerate(values)}

    def raw() -> None:
        held["parameters"] = rule.apply_gradients(mlx_gradients, held["parameters"])
        mx.eval(held["parameters"], rule.state)

    for run in (raw, eager, compiled) * 3:
        run()
    for i, (a, b) in enumerate(zip(eager_vars, compiled_vars)):
        want = np.array(held["parameters"][str(i)])
        for ours in (a, b):
            error = float(np.abs(ours.numpy() - want).max())
            # Three moves of about the rate; MLX's bias correction is off by 1e-5 of one.
            if not error <= 1e-3 * RATE + 1e-6:
                raise SystemExit(f"{name}, {NAMES[case]}: differs from mlx by {error:g}")
    return {"mlx": Side(raw), "eager": Side(eager), "compiled": Side(compiled)}


def cell(times: tuple[float, float, float], digits: int) -> str:
    """A median and, in parentheses, the percentiles."""
    middle, low, high = (f"{value:.{digits}f}" for value in times)
    return f"{middle} ({low}–{high})"


def line(label: str, times: dict[str, Times]) -> str:
    """A row of the table."""
    base = times["mlx"]
    milliseconds = [1e3 * value for value in (base.median(), *base.range())]
    ratios = [cell(times[name].ratio(base), 2) for name in times if name != "mlx"]
    return row([label, cell((milliseconds[0], milliseconds[1], milliseconds[2]), 2), *ratios])


def main() -> None:
    """Measure, print the table and write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31, help="turns each side takes")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="these sizes")
    results = Path(__file__).with_name("results.csv")
    parser.add_argument("--csv", type=Path, nargs="?", const=results, help=f"append rows (default: {results.name})")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds takes 1 or more")
    print(f"{device()}\n{versions()}; commit {commit()}\n{load()}\n")
    print(head(["case", "mlx ms", "eager", "compiled"]))
    for case in options.only:
        for name in OPTIMIZERS:
            sides = sides_of(name, case)
            times = alternate(sides, options.rounds)
            print(line(f"{name}, {NAMES[case]}", times), flush=True)
            if options.csv:
                append(options.csv, rows_of("optim", f"{name}, {NAMES[case]}", times, sides, "mlx"))
    print("\n" + load())


if __name__ == "__main__":
    main()

"""Small networks against ``mlx.nn`` and ``mlx.optimizers``: training steps, norms with gradients, a key-value cache.

    python benchmarks/nn.py [--only cnn lstm] [--rounds 31] [--csv]

Sides: "mlx" is written as a user of MLX would, with ``nn.value_and_grad`` and ``mx.eval`` for each step, channels last;
"eager" is ours as a user of candle would write it, "compiled" the same inside ``metal_candle.compile``. All start from
the same weights; the losses of three steps, without dropout, are compared first. In each round every side takes one
turn, in random order. Tables hold medians over the rounds with the 20th and 80th percentiles, ratios are to mlx, round
by round.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import metal_candle  # noqa: F401  (before mlx.core: it loads the BLAS)

import mlx.core as mx
import numpy as np
from measure import Side, Times, alternate, append, commit, device, head, load, repeats_for, row, rows_of, versions
from nn_cases import CASES, Case

# A sample is so long at the least, where the run is shorter: clocks and threads waking up do not show then.
SAMPLE = 5e-3
STEPS = 3
# Float32, added up in another order, and Adam, which divides a gradient by its size: a wrong one shows at once.
TOLERANCE = 2e-3


def compare(case: Case) -> None:
    """A few steps of every side, and their results compared. Ends the program where one differs from mlx."""
    sides = case.sides(False)
    for step in range(STEPS):
        expected = [np.array(each) for each in sides["mlx"]()]
        for name in sides.keys() - {"mlx"}:
            for ours, theirs in zip(map(np.array, sides[name]()), expected, strict=True):
                scale, error = float(np.abs(theirs).max()), float(np.abs(ours - theirs).max())
                if not error <= TOLERANCE * scale:
                    raise SystemExit(f"{case.label}, step {step}: {name} differs from mlx by {error:g} of {scale:g}")


def measure(case: Case, rounds: int | None, seconds: float) -> tuple[dict[str, Times], dict[str, Side]]:
    """Times of every side: in ``rounds`` rounds, or in as many as take about ``seconds``, five to a hundred."""
    sides = {name: Side(run, repeats_for(run, SAMPLE, 100), calls=case.calls) for name, run in case.sides(True).items()}
    if rounds is None:
        start = time.perf_counter()
        alternate(sides, 1)
        rounds = max(5, min(101, round(seconds / (time.perf_counter() - start))))
    return alternate(sides, rounds), sides


def cell(values: tuple[float, float, float], digits: int) -> str:
    """A median and, in parentheses, the percentiles."""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low}–{high})"


def line(label: str, times: dict[str, Times]) -> str:
    """A row of the table."""
    base = times["mlx"]
    low, high = base.range()
    ratios = [cell(times[name].ratio(base), 2) if name in times else "" for name in ("eager", "compiled")]
    return row([label, cell((1e3 * base.median(), 1e3 * low, 1e3 * high), 3), *ratios])


def main() -> None:
    """Measure, print the table and write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="turns each side takes (default: by the time a case may take)")
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long a case may take")
    parser.add_argument("--only", nargs="+", help="cases with one of these words")
    results = Path(__file__).with_name("results.csv")
    parser.add_argument("--csv", type=Path, nargs="?", const=results, help=f"append rows (default: {results.name})")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds takes 1 or more")
    words = [word.lower() for word in options.only or [""]]
    cases = [case for case in CASES if any(word in case.label.lower() for word in words)]
    if not cases:
        parser.error(f"--only takes words of: {'; '.join(case.label for case in CASES)}")
    mx.random.seed(0)
    print(f"{device()}\n{versions()}; commit {commit()}\n{load()}\n")
    print(head(["case", "mlx ms", "eager", "compiled"]))
    for case in cases:
        compare(case)
        times, sides = measure(case, options.rounds, options.seconds)
        print(line(case.label, times), flush=True)
        if options.csv:
            append(options.csv, rows_of("nn", case.label, times, sides, "mlx"))
    print("\n" + load())


if __name__ == "__main__":
    main()

"""Each kernel against MLX's own compositions and `mx.fast`, plain and under `mx.compile`, over sizes.

    python benchmarks/kernels.py --csv --plot [--quick] [--only lora softmax] [--dtype float16] [--minutes 9]
    python benchmarks/kernels.py --rows benchmarks/results.csv [--on H200] --plot

On a GPU "ours" is our launch wherever it fits, as with METAL_CANDLE_KERNELS=custom, and "chosen" what the rule takes
instead where that is another variant; on a CPU "ours" is the variant chosen there. First every side's results are
compared with the definition in float32: one that differs is named and not timed. Then all take turns in random order.
A run is a chain of calls, each on the result of the one before with weights of its own, as layers follow each other;
sides are alike but for the call. Tables hold medians, with the 20th and 80th percentiles of the ratios round by round.

Bytes are the fewest that a call must move; a copy of this run on this device is what their rate is compared with.
Cases come coarse grid first, and those that the time does not suffice for are left out: nine minutes on a GPU,
compilers included, four on a CPU, where sizes are smaller. Under `mx.compile` only on a GPU, as on a CPU MLX calls a
C++ compiler for each shape; `--compile` does it there too.

The second command measures nothing: it takes the rows of a file's last run, on a device whose name holds the word.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import metal_candle  # noqa: F401  (before mlx.core: it loads the BLAS)
from metal_candle.kernels import custom

import mlx.core as mx
from kernel_case import CHOSEN, COMPILED, NAMES, OURS, Case, calls
from kernel_cases import SUBJECTS, ordered
from kernel_grid import Grid
from kernel_plot import plot
from kernel_rows import last_run
from kernel_run import Copy, Found, copied, large, run
from kernel_tables import line, summary, titles, verdict
from kernel_verdict import Outcome
from measure import append, commit, device, load, on_cpu, versions

MINUTES, CPU_MINUTES, QUICK_MINUTES = 9.0, 4.0, 1.0
# Seconds a case's rounds take together.
GPU_SECONDS, CPU_SECONDS = 0.08, 0.5


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__)
    results, chart = here.with_name("results.csv"), here.with_suffix(".png")
    parser.add_argument("--only", nargs="+", default=[], help=f"these subjects ({', '.join(SUBJECTS)}) or kernels")
    parser.add_argument("--dtype", nargs="+", choices=list(NAMES.values()), help="default: all; on a CPU float32")
    parser.add_argument("--quick", action="store_true", help="a minute, the coarse grid, few rounds")
    parser.add_argument("--minutes", type=float, help="time after which no case is begun (default: 9; on a CPU 4)")
    parser.add_argument("--level", type=int, help="no case of a finer grid than this: 0 is the coarsest")
    parser.add_argument("--rounds", type=int, help="turns each side takes (default: by the time a case may take)")
    parser.add_argument("--tokens", type=int, default=128, help="of SmolLM2's shapes (default: 128)")
    parser.add_argument("--compile", action="store_true", help="mx.compile on a CPU too")
    parser.add_argument("--csv", type=Path, nargs="?", const=results, help=f"append rows (default: {results.name})")
    parser.add_argument("--plot", type=Path, nargs="?", const=chart, help=f"a chart (default: {chart.name})")
    parser.add_argument("--rows", type=Path, help="measure nothing: the verdict and chart of a file's last run")
    parser.add_argument("--on", default="", help="with --rows: a word of the device's name")
    parser.add_argument("--commit", help="of the rows, where there is no git")
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds takes 1 or more")
    return options


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The cases asked for, in the order in which they are measured. Ends the program for a name that is none."""
    names = options.dtype or (["float32"] if on_cpu() else list(NAMES.values()))
    grid = Grid(not on_cpu(), [dtype for dtype, name in NAMES.items() if name in names], options.tokens)
    level = options.level if options.level is not None else (1 if options.quick else None)
    try:
        cases = ordered(grid, options.only)
    except ValueError as error:
        raise SystemExit(f"--only: {error}") from None
    return [case for case in cases if level is None or case.level <= level]


def measured(options: argparse.Namespace, copy: Copy, until: float) -> tuple[list[Outcome], Counter[str]]:
    """Measure all cases that there is time for, print and write them; their outcomes, and which sides were wrong how
    often."""
    seconds = (CPU_SECONDS if on_cpu() else GPU_SECONDS) / (3 if options.quick else 1)
    rows = copy.rows
    outcomes: list[Outcome] = []
    wrong: Counter[str] = Counter()
    left: Counter[str] = Counter()
    print(titles())
    for case in cases_of(options):
        if time.perf_counter() > until:
            left["time"] += 1
            continue
        if large(case, calls(case, copy.rate)):
            left["memory"] += 1
            continue
        try:
            found = run(case, copy.rate, options.compile or not on_cpu(), options.rounds, seconds)
        except RuntimeError as error:
            # Out of memory, say. What a GPU is lent for is not lost by one case.
            found = Found(None, [], {"all": f"fails: {error}"})
        for side, how in found.wrong.items():
            print(f"not timed: {case.group}, {case.label}: {side} {how}", flush=True)
        wrong.update(list(found.wrong))
        rows += found.rows
        if found.outcome is not None:
            outcomes.append(found.outcome)
            print(line(found.outcome), flush=True)
        if options.csv:
            append(options.csv, [{**row, **({"commit": options.commit} if options.commit else {})} for row in rows])
        rows = []
        if case.floor > 2**26:
            mx.clear_cache()
    print("".join(f"\n{count} cases are left out for want of {what}" for what, count in left.items()))
    return outcomes, wrong


def conclude(outcomes: Sequence[Outcome], chart: Path | None, title: str) -> None:
    """Print the summary and the verdict, and plot."""
    if not outcomes:
        print("\nnothing was measured")
        return
    print(f"\n### Speed-ups over MLX's best, by kernel\n\n{summary(outcomes)}")
    print(f"\n### Verdict (the aims are for a GPU)\n\n{verdict(outcomes)}")
    if chart:
        plot(chart, outcomes, title)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write rows and plot; 1 if a side of ours gave wrong results."""
    start = time.perf_counter()
    options = options_of(arguments)
    if options.rows:
        outcomes, title = last_run(options.rows, options.on)
        print(title)
        conclude(outcomes, options.plot, title)
        return 0
    minutes = QUICK_MINUTES if options.quick else CPU_MINUTES if on_cpu() else MINUTES
    minutes = minutes if options.minutes is None else options.minutes
    mx.random.seed(0)
    on = custom.backend()
    print(f"{device()}; {'no launches' if on is None else f'launches by {on.name}'}")
    print(f"{versions()}; commit {options.commit or commit()}\n{load()}")
    copy = copied(3 if options.quick else 15)
    print(f"a copy of {copy.size}: {copy.rate / 1e9:.1f} GB/s, read and written, by {copy.by}\n")
    outcomes, wrong = measured(options, copy, start + 60 * minutes)
    print(f"\n{load()}; {len(outcomes)} cases in {time.perf_counter() - start:.0f} s")
    conclude(outcomes, options.plot, f"{device()}; a copy: {copy.rate / 1e9:.0f} GB/s")
    for side, count in wrong.items():
        print(f"\nNOT TIMED: {side}, which differs from the definition, or fails, in {count} cases")
    # A way of MLX's may be missing on a device, or less accurate.
    return 1 if any(side.removesuffix(COMPILED) in (OURS, CHOSEN, "all") for side in wrong) else 0


if __name__ == "__main__":
    sys.exit(main())

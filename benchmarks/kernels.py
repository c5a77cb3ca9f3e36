"""Each kernel against MLX's own compositions and `mx.fast`, plain and under `mx.compile`, over sizes.

    python benchmarks/kernels.py --csv --plot [--quick] [--only lora softmax] [--dtype float16] [--minutes 9]

On a GPU "ours" is our launch wherever it fits, as with METAL_CANDLE_KERNELS=custom, and "chosen" what the rule takes
instead where that is another variant; on a CPU "ours" is the variant chosen there. First every side's results are
compared with the definition in float32: one that differs is named and not timed. Then all take turns in random order.
A run is a chain of calls, each on the result of the one before with weights of its own, as layers follow each other;
sides are alike but for the call. Tables hold medians, with the 20th and 80th percentiles of the ratios round by round.

Bytes are the fewest that a call must move; a copy of this run on this device is what their rate is compared with.
Cases come coarse grid first, and those that the time does not suffice for are left out: nine minutes on a GPU,
compilers included, four on a CPU, where sizes are smaller. Under `mx.compile` only on a GPU, as on a CPU MLX calls a
C++ compiler for each shape; `--compile` does it there too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import metal_candle  # noqa: F401  (before mlx.core: it loads the BLAS)
from metal_candle.kernels import custom

import measure
import mlx.core as mx
import numpy as np
from kernel_case import (
    CHOSEN,
    COMPILED,
    NAMES,
    OURS,
    Case,
    Timed,
    calls,
    choice,
    cotangents,
    disagreement,
    exact,
    input_sets,
    side,
    timed,
)
from kernel_cases import SUBJECTS, ordered
from kernel_grid import Grid
from kernel_plot import plot
from kernel_tables import line, summary, titles, verdict
from kernel_verdict import Outcome
from measure import Side, Times, alternate, append, commit, device, load, memory, on_cpu, repeats_for, rows_of

MINUTES, CPU_MINUTES, QUICK_MINUTES = 9.0, 4.0, 1.0
ROUNDS = (5, 31)
SAMPLE = 1e-3
# Seconds a case's rounds take together.
GPU_SECONDS, CPU_SECONDS = 0.1, 0.5


def copies(calls: int = 8) -> tuple[dict[str, Side], int]:
    """Large copies, to be timed, and the bytes one reads and writes: on a GPU by MLX's own kernels, on the CPU, where
    these compute with one thread into new pages, by NumPy."""
    bytes_ = min(2**26 if on_cpu() else 2**29, memory() // 16)
    array = mx.random.normal((bytes_ // 4,))
    mx.eval(array)
    if on_cpu():
        source, target = np.array(array), np.array(array)
        return {"numpy.copyto": Side(lambda: np.copyto(target, source))}, 2 * array.nbytes

    def chained(copy: Callable[[mx.array], mx.array]) -> Side:
        def run() -> None:
            copied = array
            for _ in range(calls):
                copied = copy(copied)
            mx.eval(copied)

        return Side(run, calls=calls)

    return {"x + 0": chained(lambda x: x + 0), "abs": chained(mx.abs)}, 2 * array.nbytes


def large(case: Case, count: int) -> bool:
    """Whether a chain may not fit into memory: its results, MLX's intermediate ones and the float32 definition's."""
    return case.floor * (6 if not case.wrt and case.links else 6 + count) > memory() // 2


def agreeing(case: Case, sides: Mapping[str, Timed], given: Sequence[mx.array]) -> tuple[dict[str, Timed], list[str]]:
    """The sides that give what the definition gives, and what is wrong with the others."""
    wanted = exact(case, tuple(given))
    mx.eval(wanted)
    wrong = {name: disagreement(case, one, tuple(given), wanted) for name, one in sides.items()}
    told = [f"{case.group}, {case.label}: {name} {how}" for name, how in wrong.items() if how]
    return {name: one for name, one in sides.items() if not wrong[name]}, told


def turns(case: Case, sides: Mapping[str, Side], rounds: int | None, seconds: float) -> dict[str, Times]:
    """The times of all sides, in ``rounds`` rounds or in as many as take about ``seconds``."""
    if rounds is None:
        start = time.perf_counter()
        alternate(sides, 1)
        fewest, most = ROUNDS
        rounds = max(fewest, min(most, round(seconds / (time.perf_counter() - start))))
    return alternate(sides, rounds)


def quickest(times: Mapping[str, Times], ours: bool) -> str | None:
    """The side with the lowest median, of ours or of MLX's."""
    names = [name for name in times if (name.removesuffix(COMPILED) == OURS) == ours]
    names = [name for name in names if name.removesuffix(COMPILED) != CHOSEN]
    return min(names, key=lambda name: times[name].median(), default=None)


def run(
    case: Case, bandwidth: float, compiled: bool, rounds: int | None, seconds: float, rows: list[dict[str, object]]
) -> tuple[Outcome | None, list[str]]:
    """Measure a case: its outcome, unless ours or all others are wrong, and what is wrong. Adds rows."""
    inputs = case.make()
    mx.eval(inputs)
    chosen = choice(case, inputs)
    upstream = cotangents(case, inputs)
    mx.eval(upstream)
    given = (*inputs, *upstream)
    right, wrong = agreeing(case, timed(case, chosen, compiled), given)
    sets = input_sets(case, calls(case, bandwidth), upstream)
    sides = {}
    for name, one in right.items():
        whole = side(case, one, sets)
        with whole.within():
            repeats = 1 if rounds == 1 else repeats_for(whole.run, SAMPLE, 20)
        sides[name] = Side(whole.run, repeats, whole.within, whole.calls)
    times = turns(case, sides, rounds, seconds)
    ours, rival = quickest(times, ours=True), quickest(times, ours=False)
    if ours is None or rival is None:
        return None, wrong
    share = {name: case.floor / each.median() / bandwidth for name, each in times.items()}
    texts = {OURS: chosen.text(), CHOSEN: chosen.chosen}
    more = {name: (str(case.floor), f"{share[name]:.4f}", texts.get(name.removesuffix(COMPILED), "")) for name in times}
    rows += rows_of(f"kernels.{case.group}", case.label, times, sides, rival, more)
    middle, low, high = times[rival].ratio(times[ours])
    outcome = Outcome(
        group=case.group,
        axes=dict(case.axes),
        dtype=NAMES[case.dtype],
        gradient=bool(case.wrt),
        floor=case.floor,
        seconds=times[ours].median(),
        speedup=middle,
        low=low,
        high=high,
        share=share[ours],
        launched=chosen.launched,
        rule=chosen.rule,
        variant=chosen.variant,
        mlx=rival,
        mlx_seconds=times[rival].median(),
    )
    return outcome, wrong


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__)
    results, chart = here.with_name("results.csv"), here.with_suffix(".png")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="these subjects")
    parser.add_argument("--dtype", nargs="+", choices=list(NAMES.values()), help="default: all; on a CPU float32")
    parser.add_argument("--quick", action="store_true", help="a minute, the coarse grid, few rounds")
    parser.add_argument("--minutes", type=float, help="time after which no case is begun (default: 9; on a CPU 4)")
    parser.add_argument("--level", type=int, help="no case of a finer grid than this: 0 is the coarsest")
    parser.add_argument("--rounds", type=int, help="turns each side takes (default: by the time a case may take)")
    parser.add_argument("--tokens", type=int, default=128, help="of SmolLM2's shapes (default: 128)")
    parser.add_argument("--compile", action="store_true", help="mx.compile on a CPU too")
    parser.add_argument("--csv", type=Path, nargs="?", const=results, help=f"append rows (default: {results.name})")
    parser.add_argument("--plot", type=Path, nargs="?", const=chart, help=f"a chart (default: {chart.name})")
    parser.add_argument("--commit", help="of the rows, where there is no git")
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds takes 1 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write rows and plot; 1 if a side gave wrong results."""
    start = time.perf_counter()
    options = options_of(arguments)
    gpu = not on_cpu()
    standard = (MINUTES if gpu else CPU_MINUTES) if not options.quick else QUICK_MINUTES
    until = start + 60 * (standard if options.minutes is None else options.minutes)
    names = options.dtype or (list(NAMES.values()) if gpu else ["float32"])
    grid = Grid(gpu, [dtype for dtype, name in NAMES.items() if name in names], options.tokens)
    level = options.level if options.level is not None else (1 if options.quick else None)
    seconds = (GPU_SECONDS if gpu else CPU_SECONDS) / (3 if options.quick else 1)
    mx.random.seed(0)
    on = custom.backend()
    print(f"{device()}; {'no launches' if on is None else f'launches by {on.name}'}")
    print(f"{measure.versions()}; commit {options.commit or commit()}\n{load()}")
    copied, bytes_ = copies()
    of_copies = alternate(copied, 3 if options.quick else 15)
    quicker = min(of_copies, key=lambda name: of_copies[name].median())
    bandwidth = bytes_ / of_copies[quicker].median()
    size = f"{bytes_ // 2**21} MiB"
    print(f"a copy of {size}: {bandwidth / 1e9:.1f} GB/s, read and written, by {quicker}\n")
    more = {name: (str(bytes_), f"{bytes_ / times.median() / bandwidth:.4f}", "") for name, times in of_copies.items()}
    rows = rows_of("kernels.copy", size, of_copies, copied, quicker, more)
    del copied
    outcomes: list[Outcome] = []
    wrong: list[str] = []
    left: dict[str, int] = {}
    print(titles())
    for case in ordered(options.only, grid):
        if level is not None and case.level > level:
            continue
        out_of_time = time.perf_counter() > until
        if out_of_time or large(case, calls(case, bandwidth)):
            reason = "for want of time" if out_of_time else "for want of memory"
            left[reason] = left.get(reason, 0) + 1
            continue
        outcome, differing = run(case, bandwidth, gpu or options.compile, options.rounds, seconds, rows)
        wrong += differing
        for each in differing:
            print(f"WRONG: {each}", flush=True)
        if outcome is not None:
            outcomes.append(outcome)
            print(line(outcome), flush=True)
        if options.csv:
            append(options.csv, [{**each, **({"commit": options.commit} if options.commit else {})} for each in rows])
        rows = []
        if case.floor > 2**26:
            mx.clear_cache()
    print(f"\n{load()}; {time.perf_counter() - start:.0f} s; {len(outcomes)} cases")
    print("".join(f"{count} cases are left out {reason}\n" for reason, count in left.items()))
    if outcomes:
        print(f"### Speed-ups over MLX's best, by kernel\n\n{summary(outcomes)}\n")
        print(f"### Verdict{'' if gpu else ' (the aims are for a GPU)'}\n\n{verdict(outcomes)}")
        if options.plot:
            plot(options.plot, outcomes, f"{device()}, copy {bandwidth / 1e9:.0f} GB/s")
    if wrong:
        print(f"\n{len(wrong)} sides differ from the definition and were not timed, the first: {wrong[0]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The graph engine against MLX by hand: LoRA chains, norms, a transformer block, independent inputs.

    python benchmarks/graph.py [--quick] [--only lora softmax] [--csv] [--plot graph.png] [--profile]

Sides: "raw" is MLX written by hand, with what `mx.fast` has but without `mx.compile`, which on a CPU calls a C++
compiler for each shape; "unrewritten" and "lazy" record a graph, evaluate it, and record it anew the next time;
"compiled" replays `metal_candle.compile`; "eager" is the tensor of v1. In each round every side takes one turn, in
random order; it ends with its results computed. Before that the sides' results are compared once. Tables hold medians
over the rounds with the 20th and 80th percentiles, ratios are to raw, round by round.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import metal_candle  # noqa: F401  (before mlx.core: it loads the BLAS)
from metal_candle.graph.evaluate import keep
from metal_candle.graph.plans import apply_rules, planned
from metal_candle.graph.rewrite import Log
from metal_candle.graph.structure import survey
from metal_candle.graph.term import terms_of

import mlx.core as mx
import numpy as np
from graph_case import Case, arrays
from graph_cases import GROUPS
from measure import Side, Times, alternate, append, commit, device, head, load, repeats_for, row, rows_of, versions

# A sample is so long at the least, where the run is shorter: clocks and threads waking up do not show then.
SAMPLE = 2e-3
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50)
STAGES = ("build", "eval", "record", "plan", "call", "eval", "keep")


def compare(case: Case) -> None:
    """Run every side once and compare. Ends the program where one differs from raw."""
    expected = arrays(case.sides["raw"]())
    for name, run in case.sides.items():
        with case.context(name)():
            found = arrays(run())
        for ours, theirs in zip(found, expected, strict=True):
            scale = float(np.abs(theirs).max())
            error = float(np.abs(np.array(ours) - np.array(theirs)).max())
            if not error <= case.tolerance * scale:
                raise SystemExit(f"{case.group}, {case.label}: {name} differs from raw by {error:g} of {scale:g}")


def measure(case: Case, rounds: int | None, seconds: float) -> tuple[dict[str, Times], dict[str, Side]]:
    """Times of every side: in ``rounds`` rounds, or in as many as take about ``seconds``, five to a hundred."""
    sides = {}
    for name, run in case.sides.items():
        within = case.context(name)
        with within():
            repeats = 1 if rounds == 1 else repeats_for(run, SAMPLE, 100)
        sides[name] = Side(run, repeats, within)
    if rounds is None:
        start = time.perf_counter()
        alternate(sides, 1)
        rounds = max(5, min(101, round(seconds / (time.perf_counter() - start))))
    return alternate(sides, rounds), sides


def fired(case: Case) -> str:
    """The rules that rewrite the lazy side, with how often each is applied."""
    counts: Counter[str] = Counter()
    for nodes in (case.before(), case.record()):
        if nodes:
            log = Log()
            apply_rules(terms_of(survey(nodes)), log)
            counts.update(each.rule for each in log.fired)
    return ", ".join(f"{rule} x {count}" for rule, count in counts.items()) or "none"


def stages(case: Case, times: int) -> list[float]:
    """Median microseconds of ``STAGES``: of the raw side building and computing; of the lazy side recording,
    finding its plan, making its MLX calls, computing, keeping values."""
    samples = []
    for _ in range(times):
        marks = [time.perf_counter()]

        def mark(marks: list[float] = marks) -> None:
            marks.append(time.perf_counter())

        results: Any = case.build()
        mark()
        mx.eval(results)
        mark()
        results = None
        marks.append(time.perf_counter())
        nodes = case.record()
        mark()
        structure, known = planned(nodes)
        mark()
        values = known.plan.run(structure.values)
        mark()
        mx.eval(values)
        mark()
        for place, value in zip(structure.roots, values):
            keep(structure.nodes[place], value)
        mark()
        del nodes, structure, values
        samples.append(np.delete(np.diff(marks), 2))
    return [float(value) * 1e6 for value in np.median(samples, axis=0)]


def cell(values: Sequence[float], digits: int) -> str:
    """A median and, in parentheses, the percentiles."""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low}–{high})"


def summary(ratios: dict[str, dict[str, dict[str, float]]]) -> str:
    """For each benchmark: geometric mean and the largest of the ratios to raw of the lazy and the compiled side."""
    titles = ("benchmark", "cases", "lazy", "largest", "where", "compiled", "largest", "where")
    lines = [head(titles, ("where",))]
    for group, cases in ratios.items():
        cells = [group, str(len(cases))]
        for side in ("lazy", "compiled"):
            found = {label: sides[side] for label, sides in cases.items()}
            worst = max(found, key=lambda label: found[label])
            mean = float(np.exp(np.mean(np.log(list(found.values())))))
            cells += [f"{mean:.2f}", f"{found[worst]:.2f}", worst]
        lines.append(row(cells))
    return "\n".join(lines)


def plot(path: Path, ratios: dict[str, dict[str, dict[str, float]]]) -> None:
    """The sides' ratios to raw by case, on logarithmic axes: large benchmarks in a row of their own, others side by
    side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator

    small = [group for group, cases in ratios.items() if len(cases) < 12]
    rows = [[group] for group in ratios if group not in small] + ([small] if small else [])
    counts = [[len(ratios[group]) + 2 for group in groups] for groups in rows]
    figure = pyplot.figure(figsize=(max(8.0, 0.28 * max(map(sum, counts))), 4.6 * len(rows)), layout="constrained")
    names = list(dict.fromkeys(name for cases in ratios.values() for sides in cases.values() for name in sides))
    style = {name: (f"C{i}", "osD^vPX"[i % 7]) for i, name in enumerate(name for name in names if name != "raw")}
    shown = {}
    for part, groups, widths in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, counts):
        axes = part.subplots(1, len(groups), sharey=True, squeeze=False, width_ratios=widths)[0]
        axes[0].set(ylabel="time, raw MLX = 1", yscale="log")
        axes[0].yaxis.set_major_locator(FixedLocator(TICKS))
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].yaxis.set_minor_locator(NullLocator())
        for axis, group in zip(axes, groups):
            cases = ratios[group]
            for side in next(iter(cases.values())):
                if side != "raw":
                    color, marker = style[side]
                    values = [sides[side] for sides in cases.values()]
                    (shown[side],) = axis.plot(values, marker, color=color, markersize=5, alpha=0.8)
            axis.axhline(1.0, color="black", linewidth=0.8)
            axis.set_title(group.replace("_", "\n"), fontsize="medium")
            axis.set(xlim=(-0.5, len(cases) - 0.5))
            axis.set_xticks(
                range(len(cases)), list(cases), rotation=60, ha="right", rotation_mode="anchor", fontsize="small"
            )
            axis.grid(axis="y", alpha=0.3)
    figure.legend(list(shown.values()), list(shown), ncols=len(shown), loc="outside lower center")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure, print the tables, write rows and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="these benchmarks")
    parser.add_argument("--rounds", type=int, help="turns each side takes (default: by the time a case may take)")
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds: a minute instead of six")
    results = Path(__file__).with_name("results.csv")
    parser.add_argument("--csv", type=Path, nargs="?", const=results, help=f"append rows (default: {results.name})")
    parser.add_argument("--plot", type=Path, help="file for a chart of the ratios")
    parser.add_argument("--profile", action="store_true", help="also print where raw and lazy spend their time")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds takes 1 or more")
    mx.random.seed(0)
    print(f"{device()}\n{versions()}; commit {commit()}\n{load()}\n")
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    profiles: list[str] = []
    for group in options.only:
        print(f"### {group}: {(GROUPS[group].__doc__ or '').splitlines()[0]}\n")
        first = True
        for case in GROUPS[group](options.quick):
            compare(case)
            times, sides = measure(case, options.rounds, 0.8 if options.quick else 3.0)
            others = [name for name in times if name != "raw"]
            if first:
                print(head(["case", "raw µs", *others, "rules"], ("rules",)))
                first = False
            raw = times["raw"]
            found = {name: times[name].ratio(raw) for name in times}
            cells = [case.label, cell([value * 1e6 for value in (raw.median(), *raw.range())], 0)]
            print(row([*cells, *(cell(found[name], 2) for name in others), fired(case)]), flush=True)
            ratios.setdefault(group, {})[case.label] = {name: values[0] for name, values in found.items()}
            if options.csv:
                append(options.csv, rows_of(group, case.label, times, sides, "raw"))
            if options.profile:
                cost = stages(case, min(200, max(5, round(0.3 / raw.median()))))
                profiles.append(row([f"{group}, {case.label}", *(f"{value:.1f}" for value in cost)]))
        print()
    print(load() + "\n")
    print(f"### Ratios to raw: geometric mean, and the largest\n\n{summary(ratios)}")
    if profiles:
        titles = ["µs", *(f"{'raw' if i < 2 else 'lazy'}: {stage}" for i, stage in enumerate(STAGES))]
        print(f"\n### Where the time goes\n\n{head(titles)}\n" + "\n".join(profiles))
    if options.plot:
        plot(options.plot, ratios)


if __name__ == "__main__":
    main()

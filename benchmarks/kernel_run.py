"""How ``kernels.py`` measures a case: sides that agree with the definition take turns; and what a copy's rate is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
from kernel_rows import COPY, PREFIX
from kernel_verdict import Outcome
from measure import Side, Times, alternate, memory, on_cpu, repeats_for, rows_of

ROUNDS = (5, 31)
SAMPLE = 1e-3

Rows = list[dict[str, object]]


@dataclass(frozen=True)
class Copy:
    """A large copy: its size in words, bytes read and written in a second, what made it, rows for a file."""

    size: str
    rate: float
    by: str
    rows: Rows


def copied(rounds: int) -> Copy:
    """The fastest large copy: on a GPU by MLX's own kernels, on the CPU, where these compute with one thread into new
    pages, by NumPy."""
    bytes_ = min(2**26 if on_cpu() else 2**29, memory() // 16)
    array = mx.random.normal((bytes_ // 4,))
    mx.eval(array)
    if on_cpu():
        source, target = np.array(array), np.array(array)
        sides = {"numpy.copyto": Side(lambda: np.copyto(target, source))}
    else:
        sides = {"x + 0": _chained(array, lambda x: x + 0), "abs": _chained(array, mx.abs)}
    for each in sides.values():
        each.run()
    times = alternate(sides, rounds)
    by = min(times, key=lambda name: times[name].median())
    moved, size = 2 * array.nbytes, f"{array.nbytes // 2**20} MiB"
    rate = moved / times[by].median()
    more = {name: (str(moved), f"{moved / each.median() / rate:.4f}", "") for name, each in times.items()}
    return Copy(size, rate, by, rows_of(COPY, size, times, sides, by, more))


def _chained(array: mx.array, copy: Callable[[mx.array], mx.array], calls: int = 8) -> Side:
    def run() -> None:
        last = array
        for _ in range(calls):
            last = copy(last)
        mx.eval(last)

    return Side(run, calls=calls)


@dataclass(frozen=True)
class Found:
    """What measuring a case gave: its outcome, unless our side or all others are wrong; rows; what is wrong with which
    side."""

    outcome: Outcome | None
    rows: Rows
    wrong: dict[str, str]


def large(case: Case, count: int) -> bool:
    """Whether a chain may not fit into memory: its results, MLX's intermediate ones and the float32 definition's."""
    return case.floor * (6 if not case.wrt and case.links else 6 + count) > memory() // 2


def differing(case: Case, sides: Mapping[str, Timed], given: Sequence[mx.array]) -> dict[str, str]:
    """What is wrong with the sides that do not give what the definition gives."""
    wanted = exact(case, given)
    mx.eval(wanted)
    found = {name: disagreement(case, one, given, wanted) for name, one in sides.items()}
    return {name: how for name, how in found.items() if how is not None}


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


def run(case: Case, rate: float, compiled: bool, rounds: int | None, seconds: float) -> Found:
    """Measure a case where a copy moves ``rate`` bytes a second: in ``rounds``, or for about ``seconds``."""
    inputs = case.make()
    mx.eval(inputs)
    chosen = choice(case, inputs)
    upstream = cotangents(case, inputs)
    mx.eval(upstream)
    given = (*inputs, *upstream)
    all_sides = timed(case, chosen, compiled)
    wrong = differing(case, all_sides, given)
    sets = input_sets(case, calls(case, rate), upstream)
    sides = {}
    for name, one in all_sides.items():
        if name in wrong:
            continue
        whole = side(case, one, sets)
        with whole.within():
            repeats = 1 if rounds == 1 else repeats_for(whole.run, SAMPLE, 20)
        sides[name] = Side(whole.run, repeats, whole.within, whole.calls)
    times = turns(case, sides, rounds, seconds)
    ours, rival = quickest(times, ours=True), quickest(times, ours=False)
    if ours is None or rival is None:
        return Found(None, [], wrong)
    share = {name: case.floor / each.median() / rate for name, each in times.items()}
    texts = {OURS: chosen.text(), CHOSEN: chosen.chosen}
    more = {name: (str(case.floor), f"{share[name]:.4f}", texts.get(name.removesuffix(COMPILED), "")) for name in times}
    rows = rows_of(f"{PREFIX}{case.group}", case.label, times, sides, rival, more)
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
    return Found(outcome, rows, wrong)

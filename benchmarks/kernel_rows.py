"""Outcomes from rows that ``kernels.py`` wrote: a run's verdict and chart, without measuring again."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from kernel_case import CHOSEN, COMPILED, GRADIENT, OURS, RULE
from kernel_verdict import Outcome
from measure import COLUMNS

PREFIX = "kernels."
COPY = f"{PREFIX}copy"
"""The benchmark of a run's first rows."""

Row = dict[str, str]


def last_run(path: Path, on: str = "") -> tuple[list[Outcome], str]:
    """The outcomes of the last run in a file, of those on a device whose name holds ``on``; and the run in words.

    Ends the program if there is none, or if the file has other columns.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise SystemExit(f"{path}: has the columns {reader.fieldnames}; takes {COLUMNS}")
        rows = [row for row in reader if row["benchmark"].startswith(PREFIX) and on in row["device"]]
    begins = [i for i, row in enumerate(rows) if row["benchmark"] == COPY]
    starts = [i for i in begins if i - 1 not in begins]
    if not starts:
        raise SystemExit(f"{path}: has no run of kernels.py" + (f" on {on}" if on else ""))
    run = rows[starts[-1] :]
    copies = [row for row in run if row["benchmark"] == COPY]
    rate = max(float(row["bytes"]) / float(row["median_us"]) for row in copies) / 1e3
    title = f"{run[0]['device']}; {run[0]['date'][:10]}, commit {run[0]['commit']}; a copy: {rate:.0f} GB/s"
    cases = groupby(run[len(copies) :], key=lambda row: (row["benchmark"], row["case"]))
    return [outcome(list(found)) for _, found in cases], title


def outcome(rows: Sequence[Row]) -> Outcome:
    """The outcome of one case from the rows of its sides."""

    def quickest(ours: bool) -> Row:
        found = [row for row in rows if (_plain(row) == OURS) == ours and _plain(row) != CHOSEN]
        return min(found, key=lambda row: float(row["median_us"]))

    mine, theirs = quickest(ours=True), quickest(ours=False)
    *parts, last = mine["case"].split(", ")
    gradient = last == GRADIENT
    dtype = parts.pop() if gradient else last
    sizes = [part.rsplit(" ", 1) for part in parts]
    # Rows hold our time over MLX's.
    return Outcome(
        group=mine["benchmark"].removeprefix(PREFIX),
        axes={name: int(value) for name, value in sizes},
        dtype=dtype,
        gradient=gradient,
        floor=int(mine["bytes"]),
        seconds=float(mine["median_us"]) / 1e6,
        speedup=1 / float(mine["ratio"]),
        low=1 / float(mine["ratio_p80"]),
        high=1 / float(mine["ratio_p20"]),
        share=float(mine["copy_share"]),
        launched=RULE in mine["choice"],
        rule=f"{RULE}yes" in mine["choice"],
        variant=mine["choice"].partition(";")[0],
        mlx=theirs["side"],
        mlx_seconds=float(theirs["median_us"]) / 1e6,
    )


def _plain(row: Row) -> str:
    return row["side"].removesuffix(COMPILED)

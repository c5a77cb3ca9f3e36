"""What benchmarks share: sides that take turns, the machine in words, Markdown tables, rows of a CSV file."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import random
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from metal_candle import VERSION, blas  # before mlx.core: it loads the BLAS

import mlx.core as mx
import numpy as np

COLUMNS = [
    *("date", "device", "versions", "commit", "benchmark", "case", "side"),
    *("median_us", "p20_us", "p80_us", "ratio", "ratio_p20", "ratio_p80", "rounds", "repeats"),
    # Of kernels.py: the fewest bytes a call must move, these over the median as a part of the rate of a copy, and which
    # variant was timed and why.
    *("bytes", "copy_share", "choice"),
]


@dataclass(frozen=True)
class Side:
    """What is timed: ``run`` ends with its results computed; a sample is ``repeats`` runs in a row, in ``within``.

    A run makes ``calls`` calls, one of which the times are of. Before several runs comes one that is not timed: so a
    side finds caches and threads as it left them itself, whichever side was before it.
    """

    run: Callable[[], object]
    repeats: int = 1
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    calls: int = 1

    def sample(self) -> float:
        """Seconds of one call, on average over one sample."""
        with self.within():
            if self.repeats > 1:
                self.run()
            start = time.perf_counter()
            for _ in range(self.repeats):
                self.run()
            return (time.perf_counter() - start) / (self.repeats * self.calls)


@dataclass(frozen=True)
class Times:
    """A side's seconds in each round."""

    seconds: list[float]

    def median(self) -> float:
        """The median, in seconds."""
        return float(np.median(self.seconds))

    def range(self) -> tuple[float, float]:
        """The 20th and 80th percentiles, in seconds."""
        low, high = np.percentile(self.seconds, (20, 80))
        return float(low), float(high)

    def ratio(self, other: Times) -> tuple[float, float, float]:
        """Median, 20th and 80th percentile of the ratios to ``other``, round by round: what slows a whole round down,
        as other programs do, falls out."""
        ratios = np.array(self.seconds) / np.array(other.seconds)
        low, middle, high = np.percentile(ratios, (20, 50, 80))
        return float(middle), float(low), float(high)


def alternate(sides: Mapping[str, Side], rounds: int, seed: int = 0) -> dict[str, Times]:
    """Each side's times; in every round all take one turn, in random order, since a side's place in it matters."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    order, shuffle = list(sides), random.Random(seed).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            times[name].append(sides[name].sample())
    return {name: Times(values) for name, values in times.items()}


def repeats_for(run: Callable[[], object], seconds: float, most: int) -> int:
    """How many runs take about ``seconds``, by the quicker of two after one that warms up; 1 to ``most``."""
    run()
    quickest = min(Side(run).sample() for _ in range(2))
    return max(1, min(most, round(seconds / max(quickest, 1e-7))))


@cache
def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device() -> str:
    """What computes: processor, architecture, cores, system, MLX's device, a GPU by its name."""
    place = "the CPU" if on_cpu() else f"the GPU {mx.device_info(mx.default_device()).get('device_name', '')}"
    return f"{processor()} ({platform.machine()}), {os.cpu_count()} cores, {platform.system()}, on {place}"


def on_cpu() -> bool:
    """Whether MLX computes on the CPU."""
    return mx.default_device() == mx.Device(mx.cpu)


def memory() -> int:
    """Bytes of memory of what computes."""
    told = mx.device_info(mx.default_device())
    # Metal's name for it, and CUDA's.
    found = told.get("memory_size", told.get("total_memory"))
    return int(found) if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def versions() -> str:
    """Of this package, MLX, NumPy, Python; and what multiplies matrices."""
    python = platform.python_version()
    names = {"metal-candle": VERSION, "mlx": mx.__version__, "numpy": np.__version__, "Python": python}
    return "; ".join([*(f"{name} {version}" for name, version in names.items()), f"BLAS: {blas.status().found}"])


def load() -> str:
    """How busy the machine is. What others compute slows threads that wait for each other, as a BLAS's do, most."""
    return f"load average of the last minute: {os.getloadavg()[0]:.1f}"


@cache
def commit() -> str:
    """The commit this file belongs to, with "+" if tracked files of the package differ from it; or "unknown"."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return result.stdout.strip()

    name = git("rev-parse", "--short", "HEAD")
    if name is None:
        return "unknown"
    return name + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", "metal_candle") else "")


def rows_of(
    benchmark: str,
    case: str,
    times: Mapping[str, Times],
    sides: Mapping[str, Side],
    base: str,
    more: Mapping[str, tuple[str, str, str]] | None = None,
) -> list[dict[str, object]]:
    """A row for each side, with ``COLUMNS``; ratios are to the side ``base``. ``more`` has a side's last three."""
    where = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device(),
        "versions": versions(),
        "commit": commit(),
        "benchmark": benchmark,
        "case": case,
    }
    rows = []
    for name, each in times.items():
        micro = [f"{value * 1e6:.2f}" for value in (each.median(), *each.range())]
        ratios = [f"{value:.4f}" for value in each.ratio(times[base])]
        side = sides[name]
        last = ("", "", "") if more is None else more[name]
        values = (*where.values(), name, *micro, *ratios, len(each.seconds), side.repeats * side.calls, *last)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def append(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Add rows to a CSV file, which is begun with its head if it is not there. Ends the program if its head differs."""
    new = not path.exists()
    if not new:
        with path.open(newline="", encoding="utf-8") as file:
            head = next(csv.reader(file), [])
        if head != COLUMNS:
            raise SystemExit(f"{path}: has the columns {head}; takes {COLUMNS}")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def head(titles: Sequence[str], texts: Collection[str] = ()) -> str:
    """The first two lines of a Markdown table: the first column and those of ``texts`` hold words, others numbers."""
    rule = ["---" if i == 0 or title in texts else "---:" for i, title in enumerate(titles)]
    return f"{row(titles)}\n{row(rule)}"


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"

"""The chart of ``kernels.py``: for each kernel the speed-up over MLX's best, and the share of a copy's bandwidth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernel_verdict import Outcome, mean

COLUMNS = 4
AIMED = {
    **dict.fromkeys(("lora", "add_lora"), 1.5),
    **dict.fromkeys(("masked_softmax", "causal_softmax"), 1.5),
    "add_rms_norm": 1.25,
}
"""The speed-ups aimed at on a GPU."""
TICKS = (0.1, 0.2, 0.33, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 12, 20, 50)
BYTES = {2**10: "1 KiB", 2**15: "32 KiB", 2**20: "1 MiB", 2**25: "32 MiB", 2**30: "1 GiB", 2**35: "32 GiB"}
MARKERS = "osD^v"


def plot(path: Path, outcomes: Sequence[Outcome], title: str) -> None:
    """A pair of panels for each kernel: above the speed-up, below the share of a copy's bandwidth.

    LoRA has its tokens or rows across and a colour for each width, others the bytes that must move and a colour for
    each dtype. Lines are geometric means of what is near each other across; hollow and dashed is with gradient.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if not outcome.group.startswith("smollm2."):
            panels.setdefault(outcome.group, []).append(outcome)
    if not panels:
        return
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = pyplot.figure(figsize=(4.8 * columns, 4.4 * rows + 0.8), layout="constrained")
    figure.suptitle(
        f"{title}\nhollow, dashed: with gradient; dashed black: what is aimed at on a GPU", fontsize="medium"
    )
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 2] * rows)
    for place in range(rows * columns):
        line, column = divmod(place, columns)
        above, below = axes[2 * line][column], axes[2 * line + 1][column]
        if place >= len(panels):
            above.set_axis_off()
            below.set_axis_off()
            continue
        name = list(panels)[place]
        _panel(above, below, panels[name])
        above.set_title(name, fontsize="medium")
        above.set_ylabel("MLX's best / metal-candle" if column == 0 else "")
        below.set_ylabel("share of a copy" if column == 0 else "")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _panel(above: Any, below: Any, outcomes: Sequence[Outcome]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    # LoRA, for one adapter or for rows of several: few bytes, and what counts is the first size.
    by_tokens = "rank" in outcomes[0].axes
    first = next(iter(outcomes[0].axes))

    def across(outcome: Outcome) -> int:
        return outcome.axes[first] if by_tokens else outcome.floor

    def series(outcome: Outcome) -> str:
        return f"width {outcome.axes['width']}" if by_tokens else outcome.dtype

    for i, name in enumerate(sorted({series(each) for each in outcomes}, key=lambda name: (len(name), name))):
        for gradient in (False, True):
            found = [each for each in outcomes if series(each) == name and each.gradient == gradient]
            for axis, value in ((above, "speedup"), (below, "share")):
                label = name if axis is above and found and not gradient else None
                points = [(across(each), getattr(each, value)) for each in found]
                _series(axis, points, i, gradient, label, 2 if by_tokens else 4)
    above.axhline(1.0, color="black", linewidth=0.8)
    aimed = AIMED.get(outcomes[0].group)
    if aimed is not None:
        above.axhline(aimed, color="black", linewidth=0.8, linestyle="--")
    below.axhline(0.8, color="black", linewidth=0.8, linestyle="--")
    places = sorted({across(each) for each in outcomes})
    named = {place: f"{place}" for place in places} if by_tokens else BYTES
    margin = 1.3 if by_tokens else 4
    for axis in (above, below):
        axis.set_xscale("log")
        axis.set_xlim(places[0] / margin, places[-1] * margin)
        axis.xaxis.set_major_locator(FixedLocator(list(named)))
        axis.xaxis.set_major_formatter(lambda x, _: named.get(round(x), ""))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.tick_params(axis="x", labelsize="small")
        axis.grid(alpha=0.3)
    above.set_yscale("log")
    above.yaxis.set_major_locator(FixedLocator(TICKS))
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_locator(NullLocator())
    below.set_xlabel(first if by_tokens else "bytes that must move")
    below.set_ylim(bottom=0)
    above.legend(fontsize="x-small")


def _series(
    axis: Any, points: Sequence[tuple[int, float]], place: int, gradient: bool, label: str | None, factor: int
) -> None:
    """Points and, a line, the means of those that are within a factor across."""
    color = f"C{place}"
    face = "none" if gradient else color
    axis.plot(
        [x for x, _ in points],
        [y for _, y in points],
        MARKERS[place % len(MARKERS)],
        color=color,
        markerfacecolor=face,
        markersize=3.5,
        alpha=0.5,
    )
    near: dict[int, list[tuple[int, float]]] = {}
    for x, y in points:
        near.setdefault(round(math.log(x, factor)), []).append((x, y))
    middle = sorted((mean(x for x, _ in group), mean(y for _, y in group)) for group in near.values())
    style = "--" if gradient else "-"
    axis.plot([x for x, _ in middle], [y for _, y in middle], style, color=color, linewidth=1.2, label=label)

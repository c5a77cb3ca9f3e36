"""What ``kernels.py`` prints: a line for each case, a summary, the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kernel_verdict import AIMS, Outcome, advice, faster_missed, judged, mean, slower_chosen
from measure import head, row

SHOWN = 12
"""Cases in which a rule is wrong that are named, those it costs most; all are in the table of cases."""


EXPLAINED = (
    "variant: how metal-candle computes it here, `reference` being the plain definition; rule: whether the rule takes "
    "our launch (`no launch`: none fits, or there is no GPU)"
)
NOT_JUDGED = "no launches here: aims not judged"


def titles() -> str:
    """What two columns mean, and the head of the table of cases."""
    names = ("kernel", "case", "metal-candle µs", "best of MLX", "its µs", "speed-up", "% of a copy", "variant", "rule")
    return f"{EXPLAINED}\n\n{head(names, ('case', 'best of MLX', 'variant', 'rule'))}"


def line(outcome: Outcome) -> str:
    """A line of the table of cases. The rule is whether it chooses our launch."""
    rule = ("yes" if outcome.rule else "no") if outcome.launched else "no launch"
    return row(
        [
            outcome.group,
            outcome.label,
            f"{outcome.seconds * 1e6:.1f}",
            outcome.mlx,
            f"{outcome.mlx_seconds * 1e6:.1f}",
            f"{outcome.speedup:.2f} ({outcome.low:.2f}–{outcome.high:.2f})",
            f"{outcome.share * 100:.0f}",
            outcome.variant,
            rule,
        ]
    )


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line for each kernel: speed-ups over all sizes, and the highest rate."""
    names = ("kernel", "cases", "launches", "speed-up, mean", "least", "where", "most", "most % of a copy")
    lines = [head(names, ("where",))]
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.group + (" and gradient" if outcome.gradient else ""), []).append(outcome)
    for group, found in groups.items():
        least = min(found, key=lambda outcome: outcome.speedup)
        most = max(outcome.speedup for outcome in found)
        numbers = [str(len(found)), str(sum(o.launched for o in found)), f"{mean(o.speedup for o in found):.2f}"]
        share = f"{max(o.share for o in found) * 100:.0f}"
        lines.append(row([group, *numbers, f"{least.speedup:.2f}", least.label, f"{most:.2f}", share]))
    return "\n".join(lines)


def verdict(outcomes: Sequence[Outcome]) -> str:
    """The aims, where a rule is wrong, and what would be better: of launches of ours, if any was measured."""
    if not any(outcome.launched for outcome in outcomes):
        return NOT_JUDGED
    lines = [head(("aim", "goal", "cases", "mean", "least", "where", "verdict"), ("where", "verdict"))]
    for aim in AIMS:
        found = judged(aim, outcomes)
        figures = [f"{found.mean:.2f}", f"{found.least:.2f}"] if found.cases else ["", ""]
        lines.append(row([aim.name, f"{aim.goal:g}", str(found.cases), *figures, found.where, found.text]))
    for title, wrong in (
        ("The rule chooses ours and MLX is faster", slower_chosen(outcomes)),
        ("The rule does not choose ours, which is faster", faster_missed(outcomes)),
    ):
        lines += ["", f"{title}: {len(wrong) or 'nowhere'}"]
        for o in sorted(wrong, key=lambda o: abs(math.log(o.speedup)), reverse=True)[:SHOWN]:
            lines.append(f"- {o.group}, {o.label}: {o.speedup:.2f} ({o.low:.2f}–{o.high:.2f})")
    better = advice(outcomes)
    if better:
        lines += [
            "",
            head(("kernel", "cases", "today's rule loses", "suggested rule", "it loses"), ("suggested rule",)),
        ]
    for each in sorted(better, key=lambda each: (each.group, each.gradient, each.dtype)):
        name = f"{each.group}, {each.dtype}" + (", with gradient" if each.gradient else "")
        now, then = (f"{(loss - 1) * 100:.1f} %" for loss in (each.now, each.better.loss))
        lines.append(row([name, str(each.cases), now, each.better.text, then]))
    return "\n".join(lines)

"""What ``kernels.py`` concludes: aims met or missed, and whether the rules choose the faster side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Outcome:
    """What was measured of one case.

    ``speedup``, and its 20th and 80th percentile ``low`` and ``high``, is the time of MLX's best over ours; ``share``
    the bytes that a call must move over its time, as a part of the rate of a copy. ``launched``: whether a launch of
    ours was measured; ``rule``: whether the rule chooses it. ``variant`` is what ours was, ``mlx`` the best of MLX.
    """

    group: str
    axes: Mapping[str, int]
    dtype: str
    gradient: bool
    floor: int
    seconds: float
    speedup: float
    low: float
    high: float
    share: float
    launched: bool
    rule: bool
    variant: str = ""
    mlx: str = ""
    mlx_seconds: float = 0.0

    @property
    def label(self) -> str:
        """The case in words."""
        sizes = [f"{name} {value}" for name, value in self.axes.items()]
        return ", ".join([*sizes, self.dtype, *(["with gradient"] if self.gradient else [])])


@dataclass(frozen=True)
class Aim:
    """``value`` of the outcomes it is ``about`` is to be at least ``goal``."""

    name: str
    goal: float
    about: Callable[[Outcome], bool]
    value: Callable[[Outcome], float]


LARGE = 2**27
"""Bytes from which a size is large: 128 MiB, more than the caches of today's GPUs."""

_ROWS = ("softmax", "masked_softmax", "causal_softmax", "log_softmax", "rms_norm", "add_rms_norm", "layer_norm")


def _speed(outcome: Outcome) -> float:
    return outcome.speedup


def _forward(*groups: str) -> Callable[[Outcome], bool]:
    return lambda outcome: outcome.group in groups and not outcome.gradient


AIMS = (
    Aim("LoRA for one token", 1.5, lambda o: _forward("lora", "add_lora")(o) and o.axes["tokens"] == 1, _speed),
    Aim("residual + RMS norm", 1.25, _forward("add_rms_norm"), _speed),
    Aim("scale + mask + softmax", 1.5, _forward("masked_softmax", "causal_softmax"), _speed),
    Aim(
        "share of a copy's bandwidth, softmax and norms from 128 MiB on",
        0.8,
        lambda o: _forward(*_ROWS, "add_layer_norm")(o) and o.launched and o.floor >= LARGE,
        lambda o: o.share,
    ),
)


def mean(values: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


@dataclass(frozen=True)
class Verdict:
    """An aim, how many cases there were and met it, the geometric mean and the least, and where."""

    aim: Aim
    cases: int
    met: int
    mean: float
    least: float
    where: str

    @property
    def text(self) -> str:
        """In words."""
        if not self.cases:
            return "not measured"
        if self.met == self.cases:
            return "met"
        return f"met in {self.met} of {self.cases}" if self.met else "missed"


def judged(aim: Aim, outcomes: Sequence[Outcome]) -> Verdict:
    """What the outcomes say of an aim. What no launch of ours computed counts like the others."""
    found = [outcome for outcome in outcomes if aim.about(outcome)]
    if not found:
        return Verdict(aim, 0, 0, math.nan, math.nan, "")
    least = min(found, key=aim.value)
    met = sum(aim.value(outcome) >= aim.goal for outcome in found)
    where = f"{least.group}, {least.label}"
    return Verdict(aim, len(found), met, mean(map(aim.value, found)), aim.value(least), where)


def slower_chosen(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Where the rule chooses our launch though MLX's best is faster in at least four rounds of five."""
    return [o for o in outcomes if o.launched and o.rule and o.high < 1]


def faster_missed(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Where the rule does not choose our launch though it is faster in at least four rounds of five."""
    return [o for o in outcomes if o.launched and not o.rule and o.low > 1]


@dataclass(frozen=True)
class Bound:
    """A rule of one comparison, and what the cases lose by it: their time's geometric mean over that of the best
    choice for each."""

    text: str
    use: Callable[[Outcome], bool]
    loss: float


def _loss(outcomes: Sequence[Outcome], use: Callable[[Outcome], bool]) -> float:
    wrong = [abs(math.log(o.speedup)) for o in outcomes if use(o) != (o.speedup > 1)]
    return math.exp(sum(wrong) / len(outcomes))


def _of(names: tuple[str, ...]) -> Callable[[Outcome], int]:
    return lambda outcome: math.prod(outcome.axes[name] for name in names)


def _at_most(size: Callable[[Outcome], int], most: int) -> Callable[[Outcome], bool]:
    return lambda outcome: size(outcome) <= most


def _at_least(size: Callable[[Outcome], int], fewest: int) -> Callable[[Outcome], bool]:
    return lambda outcome: size(outcome) >= fewest


SIMPLER = 1.005
"""A rule that asks for less is suggested unless another loses half a percent less."""


def suggested(outcomes: Sequence[Outcome]) -> Bound:
    """The best of: always, never, a size or a product of two sizes up to or from a bound that was measured."""
    axes = list(outcomes[0].axes)
    best: Bound | None = None
    always = Bound("always", lambda outcome: True, 0.0)
    never = Bound("never", lambda outcome: False, 0.0)
    candidates = [always, never]
    for names in [(axis,) for axis in axes] + list(combinations(axes, 2)):
        size = _of(names)
        for bound in sorted({size(outcome) for outcome in outcomes})[:-1]:
            candidates.append(Bound(f"{' · '.join(names)} <= {bound}", _at_most(size, bound), 0.0))
        for bound in sorted({size(outcome) for outcome in outcomes})[1:]:
            candidates.append(Bound(f"{' · '.join(names)} >= {bound}", _at_least(size, bound), 0.0))
    for each in candidates:
        loss = _loss(outcomes, each.use)
        if best is None or loss * SIMPLER < best.loss:
            best = Bound(each.text, each.use, loss)
    assert best is not None
    return best


@dataclass(frozen=True)
class Advice:
    """Of one kernel and dtype: how many launches were measured, what today's rule loses, and a better one."""

    group: str
    dtype: str
    gradient: bool
    cases: int
    now: float
    better: Bound


def advice(outcomes: Iterable[Outcome]) -> list[Advice]:
    """What the launches that were measured say of the rules, a kernel and dtype at a time."""
    groups: dict[tuple[str, str, bool], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.launched:
            groups.setdefault((outcome.group, outcome.dtype, outcome.gradient), []).append(outcome)
    return [Advice(*key, len(found), _loss(found, lambda o: o.rule), suggested(found)) for key, found in groups.items()]

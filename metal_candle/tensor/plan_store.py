"""The plans of a compiled function: found by arguments, bounded in number, shared by shapes that need the same one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from threading import Lock

from ..error.text import first_few
from ..graph.operation import Meta
from ..graph.rewrite import in_words
from .program import Program

MOST_SHAPES = 4096
"""For how many tuples of shapes a function remembers which of its shared plans serves them."""
MOST_COMPARED = 8
"""With how many plans a trace for new shapes is compared, the latest ones."""
MOST_DROPPED = 4096


@dataclass(frozen=True)
class Call:
    """What a function was called with, in words: the arguments by name, and what else a plan depends on."""

    arguments: dict[str, str]
    settings: dict[str, str]
    by_name: tuple[str, ...]

    def changes(self, before: Call) -> list[str]:
        """What is otherwise than ``before``."""
        return [
            f"{name} is {now.get(name, absent)}, not {then.get(name, absent)}"
            for now, then, absent in (
                (self.arguments, before.arguments, "left out"),
                (self.settings, before.settings, "empty"),
            )
            for name in dict.fromkeys([*then, *now])
            if now.get(name) != then.get(name)
        ]


@dataclass(eq=False)
class Kept:
    """A program with what ``explain`` tells of it. ``family`` is its key but for the sizes of dims."""

    program: Program
    number: int
    call: Call
    reason: str
    family: Hashable = None
    apart: str = ""
    shapes: int = field(default=1)

    def lines(self, shapeless: bool) -> list[str]:
        """What it computes, for what, and why it was made."""
        lines = [f"plan {self.number}: {described(self.program, self.call)}"]
        if self.reason:
            lines.append(f"  traced because {self.reason}")
        if self.apart:
            lines.append(f"  shares no plan because {self.apart}")
        if shapeless:
            lines.append(f"  serves {self.shapes} tuple{'s' if self.shapes != 1 else ''} of shapes")
        if self.program.rules:
            lines.append(f"  rewritten: {in_words(self.program.rules)}")
        return lines


class Plan:
    """A program for arguments of these shapes: with the shapes of its results."""

    __slots__ = ("kept", "metas", "program")

    def __init__(self, kept: Kept, metas: list[Meta]) -> None:
        self.kept, self.program, self.metas = kept, kept.program, metas


# Adding is rare. A function may be copied, as part of a model say, and a lock may not.
_lock = Lock()


class PlanStore:
    """At most ``most`` programs, and the plans that arguments find them by. The one used longest ago is dropped."""

    def __init__(self, most: int, shapeless: bool) -> None:
        self.most, self.shapeless = most, shapeless
        self.plans: OrderedDict[Hashable, Plan] = OrderedDict()
        self.kept: list[Kept] = []
        self.made = self.dropped = 0
        # By their hashes: the keys themselves would keep arguments alive.
        self._dropped_keys: set[int] = set()

    def reason(self, key: Hashable, call: Call) -> str:
        """Why no plan is there for a call, against the plan that comes nearest; the first one needs no reason."""
        if hash(key) in self._dropped_keys:
            return f"its plan was dropped: max_plans is {self.most}"
        if not self.kept:
            return "" if not self.made else f"all plans were dropped: max_plans is {self.most}"
        nearest, before = min(
            ((call.changes(kept.call), kept.call) for kept in self.kept), key=lambda near: len(near[0])
        )
        if not nearest and call.by_name != before.by_name:
            now, then = (", ".join(each.by_name) or "nothing" for each in (call, before))
            return f"passed by name is {now}, not {then}"
        if not nearest:
            return "an argument is another object that looks the same"
        return first_few(nearest, 4, "; ")

    def add(self, key: Hashable, program: Program, call: Call, reason: str) -> tuple[Plan, bool]:
        """The plan for ``key``, and whether it is a new program's; one that another thread has added meanwhile wins."""
        with _lock:
            plan = self.plans.get(key)
            if plan is not None:
                return plan, False
            family = _family(key) if self.shapeless else None
            shared, apart = self._shared(family, program) if self.shapeless else (None, "")
            if shared is None:
                kept = Kept(program, self.made, call, reason, family, apart)
                self.made += 1
                self.kept.append(kept)
            else:
                kept = shared
                kept.shapes += 1
            plan = self.plans[key] = Plan(kept, program.metas)
            self._dropped_keys.discard(hash(key))
            if len(self.kept) > self.most:
                self._drop_program()
            elif len(self.plans) > max(self.most, MOST_SHAPES):
                self._drop(next(iter(self.plans)))
            return plan, shared is None

    def _shared(self, family: Hashable, program: Program) -> tuple[Kept | None, str]:
        """A program that does the same, or what the latest one does otherwise."""
        apart = ""
        for kept in [kept for kept in reversed(self.kept) if kept.family == family][:MOST_COMPARED]:
            difference = kept.program.difference(program)
            if difference is None:
                return kept, ""
            apart = apart or difference
        return None, apart

    def _drop_program(self) -> None:
        latest = {plan.kept: None for plan in reversed(self.plans.values())}
        oldest = list(latest)[-1]
        for key in [key for key, plan in self.plans.items() if plan.kept is oldest]:
            self._drop(key)
        self.dropped += 1

    def _drop(self, key: Hashable) -> None:
        kept = self.plans.pop(key).kept
        kept.shapes -= 1
        if not kept.shapes:
            self.kept.remove(kept)
        if len(self._dropped_keys) >= MOST_DROPPED:
            self._dropped_keys.clear()
        self._dropped_keys.add(hash(key))

    def explain(self) -> str:
        """All plans, and how many were dropped."""
        lines = [line for kept in self.kept for line in kept.lines(self.shapeless)]
        if self.dropped:
            lines.append(f"dropped: {self.dropped} plan{'s' if self.dropped != 1 else ''}; max_plans is {self.most}")
        return "\n".join(lines)


def _family(key: Hashable) -> Hashable:
    """A key without the sizes of dims. Only tensors have a ``Meta`` in a key."""
    return tuple([(len(part.shape), part.dtype) if isinstance(part, Meta) else part for part in key])  # type: ignore[attr-defined]


def described(program: Program, call: Call) -> str:
    """What a program computes, and for which arguments."""
    replay = program.replay
    how = "replay without mx.compile (CPU)" if program.device.is_cpu() else "mx.compile"
    given = ", ".join(f"{name} {text}" for name, text in call.arguments.items())
    held = program.held()
    some = [f"{list(meta.shape)} {meta.dtype}" for meta in held[:4]] + (["…"] if len(held) > 4 else [])
    return (
        f"{replay.size} operations of {program.recorded} nodes, reads {len(program.reads)} and sets "
        f"{len(program.writes)} variables, holds {len(held)} tensor{'s' if len(held) != 1 else ''} from outside"
        f"{' (' + ', '.join(some) + ')' if some else ''}, {how}; arguments {given or 'none'}"
    )

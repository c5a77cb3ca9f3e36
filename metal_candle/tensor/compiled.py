"""``compile``: run a function once per shape on placeholders, then replay the recorded plan."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, overload

from .. import settings
from ..error import Error
from ..graph.evaluate import evaluate
from ..graph.node import GraphNode, current_trace
from ..graph.rewrite import in_words
from .base import TensorBase
from .containers import labels, note, skeleton
from .program import Program, trace
from .shapeless import Family

R = TypeVar("R")

MOST_PLANS = 64
"""How many plans a compiled function keeps; beyond that the one used longest ago is dropped."""


class Compiled(Generic[R]):
    """A function that replays. ``traces`` counts how often it was traced, ``explain()`` says why."""

    def __init__(self, function: Callable[..., R], shapeless: bool = False, max_plans: int = MOST_PLANS) -> None:
        if not callable(function):
            raise Error(f"compile: got {type(function).__name__}; takes a function")
        if not isinstance(max_plans, int) or max_plans < 1:
            raise Error(f"compile: got max_plans {max_plans!r}; takes a whole number from 1")
        functools.update_wrapper(self, function)
        self._function = function
        self._shapeless = shapeless
        self._max_plans = max_plans
        self._plans: OrderedDict[Hashable, Program | Family] = OrderedDict()
        self._history: list[tuple[Program, str]] = []
        self.traces = 0

    @property
    def recompiles(self) -> int:
        """How many of the traces came after the first; see ``explain``."""
        return max(0, self.traces - 1)

    def explain(self) -> str:
        """Per plan: what it computes, for which arguments, and how they differ from an earlier plan's.

        The last plans only, if there were many; those that were dropped count in ``traces``.
        """
        lines = []
        first = self.traces - len(self._history)
        for i, (program, reason) in enumerate(self._history, first):
            lines.append(f"plan {i}: {_described(program)}")
            if reason:
                lines.append(f"  traced because {reason}")
            if program.rules:
                lines.append(f"  rewritten: {in_words(program.rules)}")
        for family in self._plans.values():
            if isinstance(family, Family):
                lines.append(f"shapeless: {family.state()}")
        return "\n".join(lines)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As a method: bound to its object, which is an argument like any other."""
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        if current_trace() is not None:  # inside another compiled function: part of its trace
            return self._function(*args, **kwargs)
        key: list[Hashable] = []
        nodes: list[GraphNode] = []
        note(args, key, nodes, self._shapeless)
        if kwargs:
            note(kwargs, key, nodes, self._shapeless)
        for node in nodes:
            if node.value is None:
                evaluate(nodes)
                break
        whole = tuple(key)
        try:
            plan = self._plans.get(whole)
        except TypeError:
            skeleton((args, kwargs), [])  # names what cannot be part of a plan
            raise
        if plan is None:
            plan = self._new_plan(whole, args, kwargs)
        else:
            self._plans.move_to_end(whole)
        if isinstance(plan, Program):
            result: R = plan(nodes)
        else:
            program, any_shape = plan.program_for(nodes, lambda: self._trace(args, kwargs))
            result = program(nodes, any_shape)
        return result

    def _new_plan(self, key: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program | Family:
        plan = Family(self._max_plans) if self._shapeless else self._trace(args, kwargs)
        self._plans[key] = plan
        if len(self._plans) > self._max_plans:
            self._plans.popitem(last=False)
            if "compile" in settings.DEBUG.words:
                settings.log("compile", "%s: dropped a plan, %d is the most", self._name(), self._max_plans)
        return plan

    def _trace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
        tensors: list[TensorBase] = []
        structure = skeleton((args, kwargs), tensors)
        program = trace(self._function, structure, tensors, labels(self._function, args, kwargs), self._shapeless)
        reason = self._reason(program.labels)
        self._history.append((program, reason))
        del self._history[: -self._max_plans]
        self.traces += 1
        if "compile" in settings.DEBUG.words:
            why = f", because {reason}" if reason else ""
            settings.log("compile", "traced %s: %s%s", self._name(), _described(program), why)
        return program

    def _reason(self, now: dict[str, str]) -> str:
        """What no earlier plan was made for, against the one that comes nearest; the first plan needs no reason."""
        nearest: list[str] | None = None
        for program, _ in self._history:
            before = program.labels
            changes = [
                f"{path} is {now.get(path, 'left out')}, not {before.get(path, 'left out')}"
                for path in dict.fromkeys([*before, *now])
                if before.get(path) != now.get(path)
            ]
            if nearest is None or len(changes) < len(nearest):
                nearest = changes
        if nearest is None:
            return ""
        if not nearest:
            return "an argument is another object, or its plan was dropped"
        return "; ".join(nearest[:4]) + (f"; and {len(nearest) - 4} more" if len(nearest) > 4 else "")

    def _name(self) -> str:
        return str(getattr(self, "__name__", "function"))


def _described(program: Program) -> str:
    replay = program.replay
    how = "replay without mx.compile (CPU)" if program.device.is_cpu() else "mx.compile"
    given = ", ".join(f"{path} {text}" for path, text in program.labels.items())
    held = replay.constants()
    return (
        f"{replay.size} operations of {program.recorded} nodes, reads {len(program.reads)} and sets "
        f"{len(program.writes)} variables, holds {held} tensor{'s' if held != 1 else ''} from outside, {how}; "
        f"arguments {given or 'none'}"
    )


@overload
def compile(function: Callable[..., R], *, shapeless: bool = ..., max_plans: int = ...) -> Compiled[R]: ...
@overload
def compile(
    function: None = None, *, shapeless: bool = ..., max_plans: int = ...
) -> Callable[[Callable[..., R]], Compiled[R]]: ...


def compile(
    function: Callable[..., R] | None = None, *, shapeless: bool = False, max_plans: int = MOST_PLANS
) -> Compiled[R] | Callable[[Callable[..., R]], Compiled[R]]:
    """A function of tensors that is traced once per structure and shapes, and then replayed as one evaluation.

    Tensors may stand in nested lists, tuples and dicts; other arguments must be hashable and are part of the
    plan: a number that changes with every call is better a tensor. Variables, arguments among them, are read at each
    call and set when the plan has run; random numbers are drawn anew. Other tensors that the function takes from
    outside keep the value they had when it was traced.
    Inside the function nothing can be evaluated, and only variables and what it made itself can be changed in place.
    Results are new tensors without operations: gradients are taken inside. Also usable as a decorator.

    ``shapeless`` traces it for two shapes; if both give the same operations, the plan serves every shape of the same
    ranks and dtypes, provided the function itself does not branch on shapes. ``max_plans`` bounds how many are kept.
    On a GPU the plan goes through ``mx.compile``; on the CPU it is replayed without.

    Raises ``Error`` for arguments or results that cannot be part of a plan, ``NotEvaluatedError`` where the function
    looks at a value.
    """
    if function is None:
        return functools.partial(Compiled, shapeless=shapeless, max_plans=max_plans)
    return Compiled(function, shapeless, max_plans)

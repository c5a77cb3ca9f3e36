"""``compile``: run a function once per shape on placeholders, then replay the recorded plan."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar, overload

from .. import settings
from ..error import Error
from ..graph.evaluate import evaluate
from ..graph.node import GraphNode, current_trace
from .base import TensorBase
from .containers import labels, note, skeleton
from .modes import Modes
from .plan_store import Call, Plan, PlanStore, described
from .program import trace

R = TypeVar("R")

MOST_PLANS = 64
"""How many plans a compiled function keeps; beyond that the one used longest ago is dropped."""


class Compiled(Generic[R]):
    """A function that replays. ``traces`` counts how often it was traced, ``explain()`` says why."""

    def __init__(self, function: Callable[..., R], shapeless: bool = False, max_plans: int = MOST_PLANS) -> None:
        if not callable(function):
            raise Error(f"compile: got {type(function).__name__}; takes a function")
        if type(max_plans) is not int or max_plans < 1:
            raise Error(f"compile: got max_plans {max_plans!r}; takes a whole number from 1")
        for each in (function, type(function).__call__):
            if inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each):
                raise Error("compile: got a generator function; takes a function that returns a list")
            if inspect.iscoroutinefunction(each):
                raise Error("compile: got an async function; takes a function that does not wait")
        functools.update_wrapper(self, function)
        self._function = function
        self._store = PlanStore(max_plans, shapeless)
        self._plans = self._store.plans
        self._modes = Modes()
        self._last: Plan | None = None
        self._warned = False
        self.traces = 0

    @property
    def recompiles(self) -> int:
        """How many of the traces came after the first; see ``explain``."""
        return max(0, self.traces - 1)

    def explain(self) -> str:
        """Per plan that is kept: what it computes, for which arguments, and how they differ from an earlier plan's.

        With ``shapeless`` also for how many shapes it serves, and why it could not share an earlier plan. A trace that
        an earlier plan serves has no plan of its own; it counts in ``traces``, as those do whose plans were dropped.
        """
        return self._store.explain()

    def __repr__(self) -> str:
        count = len(self._store.kept)
        return f"compile({self._name()}): {count} plan{'s' if count != 1 else ''}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As a method: bound to its object, which is an argument like any other."""
        return self if instance is None else BoundCompiled(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        if current_trace() is not None:  # inside another compiled function: part of its trace
            return self._function(*args, **kwargs)
        key: list[Any] = [_SWITCHES.get(), self._modes.now()]
        nodes: list[GraphNode] = []
        note(args, key, nodes)
        if kwargs:
            note(kwargs, key, nodes)
        for node in nodes:
            if node.value is None:
                evaluate(nodes)
                break
        whole = tuple(key)
        plan: Plan | None
        try:
            plan = self._plans[whole]
            if plan is not self._last:
                self._plans.move_to_end(whole)
                self._last = plan
        except (KeyError, TypeError):  # no plan, or dropped by another thread meanwhile; or what cannot be part of one
            plan = None
        if plan is None:
            plan = self._new_plan(whole, args, kwargs)
        result: R = plan.program(nodes, plan.metas)
        return result

    def _new_plan(self, key: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
        tensors: list[TensorBase] = []
        structure = self._structure(args, kwargs, tensors)
        names = [*self._positions(len(args)), *kwargs]
        call = Call(labels(names, [*args, *kwargs.values()]), _settings() | self._modes.in_words(), tuple(kwargs))
        reason, dropped = self._store.reason(key, call), self._store.dropped
        program = trace(self._function, self._name(), structure, tensors)
        if self._modes.add(program.asked):
            key = (key[0], self._modes.now(), *key[2:])
            call = replace(call, settings=_settings() | self._modes.in_words())
        plan, is_new = self._store.add(key, program, call, reason)
        self._last = None  # a dropped plan is not kept alive here
        self.traces += 1
        if "compile" in settings.DEBUG.words:
            why = f", because {reason}" if reason else ""
            shared = "" if is_new else f"; plan {plan.kept.number} serves it"
            settings.log("compile", "traced %s: %s%s%s", self._name(), described(program, call), why, shared)
        if self._store.dropped > dropped:
            self._tell_of_dropping()
        return plan

    def _tell_of_dropping(self) -> None:
        most = self._store.most
        if "compile" in settings.DEBUG.words:
            settings.log("compile", "%s: dropped a plan, %d is the most", self._name(), most)
        if not self._warned:
            self._warned = True
            level, frame = 1, sys._getframe()
            while frame.f_back is not None and frame.f_code.co_filename == __file__:
                level, frame = level + 1, frame.f_back
            warnings.warn(
                f"compile: {self._name()} has dropped the plan used longest ago, as max_plans is {most}, and traces "
                f"its arguments anew when they come again; {self._name()}.explain() says how the plans differ",
                RuntimeWarning,
                stacklevel=level,
            )

    def _structure(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[TensorBase]
    ) -> tuple[list[Any], dict[str, Any]]:
        names = self._positions(len(args))
        positional = [skeleton(value, tensors, f"argument {name}") for name, value in zip(names, args)]
        return positional, {name: skeleton(value, tensors, f"argument {name}") for name, value in kwargs.items()}

    def _positions(self, count: int) -> list[str]:
        """What the positional arguments are called; by number where the signature has no names for them."""
        try:
            parameters = inspect.signature(self._function).parameters.values()
        except (TypeError, ValueError):  # some built-in functions
            parameters = ()  # type: ignore[assignment]
        names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        rest = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), "#")
        more = [f"{rest}[{i}]" if rest != "#" else f"#{len(names) + i}" for i in range(count - len(names))]
        return [*names[:count], *more]

    def _name(self) -> str:
        return str(getattr(self, "__name__", "function"))


class BoundCompiled(Generic[R]):
    """A compiled method of an object."""

    __slots__ = ("__func__", "__self__")

    def __init__(self, function: Compiled[R], instance: Any) -> None:
        self.__func__, self.__self__ = function, instance

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        return self.__func__(self.__self__, *args, **kwargs)

    @property
    def traces(self) -> int:
        """How often the function was traced, for all objects."""
        return self.__func__.traces

    @property
    def recompiles(self) -> int:
        """How many of the traces came after the first."""
        return self.__func__.recompiles

    def explain(self) -> str:
        """``Compiled.explain``, for all objects."""
        return self.__func__.explain()

    @property
    def __name__(self) -> str:
        return self.__func__._name()

    def __repr__(self) -> str:
        return f"{self.__func__!r} of {type(self.__self__).__name__}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BoundCompiled) and self.__func__ is other.__func__ and self.__self__ is other.__self__

    def __hash__(self) -> int:
        return hash((id(self.__func__), id(self.__self__)))


def _settings() -> dict[str, str]:
    found = {setting.name: setting.value for setting in (settings.DISABLE, settings.KERNELS)}
    return {name: value for name, value in found.items() if value}


# What is switched on and off is part of a plan: rules and kernels are chosen when it is made.
_SWITCHES = settings.Derived(
    lambda: (settings.DISABLE.words, settings.KERNELS.value), settings.DISABLE, settings.KERNELS
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

    Tensors may stand in nested lists, tuples, dicts and dataclasses; other arguments must be hashable and are part of
    the plan, which keeps them alive: a number that changes with every call is better a tensor. Variables, arguments
    among them, are read at each call and set when the plan has run; random numbers are drawn anew. Other tensors that
    the function takes from outside keep the value they had when it was traced. That a variable or another attribute of
    an object is replaced, rather than set, is not noticed; the training mode of a module is.
    Inside the function nothing can be evaluated, and only variables and what it made itself can be changed in place.
    Results are new tensors without operations: gradients are taken inside. Also usable as a decorator.

    ``shapeless`` traces the function for each tuple of shapes too, recording and rewriting only, so that results and
    errors are always those of the function itself. Where a trace comes out as the same operations on the same constants
    as one of the latest plans, that plan serves these shapes as well: it is planned and kept once. Which shapes a plan
    serves is remembered, up to a bound; repeated shapes cost nothing. ``explain()`` says of a plan of its own which
    operation or constant differed.
    ``max_plans`` bounds how many plans are kept; the one used longest ago goes.
    Rewriting and kernels that are switched off or on (``METAL_CANDLE_DISABLE``, ``METAL_CANDLE_KERNELS``) make another
    plan. On a GPU a plan goes through ``mx.compile``, for each shape; on the CPU it is replayed without.
    Several threads may call it. Reading variables, computing and setting them is not one step then: of two calls at
    once that set the same variable, one may not see what the other has set.

    Raises ``Error`` for arguments or results that cannot be part of a plan, ``NotEvaluatedError`` where the function
    looks at a value. Warns (``RuntimeWarning``) once per function, when the first plan is dropped.
    """
    if function is None:
        return functools.partial(Compiled, shapeless=shapeless, max_plans=max_plans)
    return Compiled(function, shapeless, max_plans)

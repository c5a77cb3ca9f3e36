"""Rules, and how they are applied: each pass takes a graph of terms and gives another of the same values."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..error import Error
from . import check
from .node import NodeNumber
from .operation import Operation
from .pattern import NOTHING, Match, Pattern
from .term import Term, TermGraph, rebuilt, substituted

REPEATS = 32
"""How often rules may replace what they put in one place. More is an endless pair of rules."""


@dataclass(frozen=True)
class Example:
    """Tensors of ``shapes`` (uniform in ±1; ``ids`` names those of integers below a number), what a user records of
    them, and the expression it becomes, if ``launched`` where kernels of ours are; where a rule declines, part of its
    reason."""

    shapes: tuple[tuple[int, ...], ...]
    before: Callable[..., Any]
    after: str
    because: str = ""
    ids: tuple[tuple[int, int], ...] = ()
    dtypes: tuple[str, ...] = ("f32", "bf16")
    launched: bool = False


@dataclass(frozen=True)
class Rule:
    """What fits ``pattern`` becomes what ``build`` makes of the names found in it.

    ``when`` gives the first condition that is not met, or ``None``. A value inside the pattern that is needed outside
    of it too is not computed twice: the rule declines then, but for operations of ``shareable``, which cost nothing,
    and for the term named ``beside``: ``build`` then makes a pair, the second for whoever needs that. Nothing that the
    pair is made of may depend on it.
    """

    name: str
    pattern: Pattern
    build: Callable[..., Term | tuple[Term, Term]]
    when: Callable[..., str | None] | None = None
    shareable: Callable[[Operation], bool] = field(default=lambda operation: operation.is_view)
    beside: str = ""

    def __post_init__(self) -> None:
        # What each function takes is read once, not at each match.
        for function in self.functions():
            _parameters(function)

    def functions(self) -> list[Callable[..., Any]]:
        """``build`` and ``when``."""
        return [self.build] if self.when is None else [self.build, self.when]

    def apply(self, term: Term, log: Log) -> dict[Term, Term] | None:
        """What takes the place of the term, and of the one beside it; ``None`` if the rule does not apply."""
        reason = None
        for match in self.pattern.match(term, NOTHING):
            why = self._declines(term, match)
            if why is None:
                made = self._made(term, match)
                if isinstance(made, dict):
                    log.note_fired(self.name, term, made[term])
                    return made
                why = made
            reason = reason or why
        if reason is not None:
            log.note_missed(self.name, term, reason)
        return None

    def _made(self, term: Term, match: Match) -> dict[Term, Term] | str:
        """What ``build`` makes of a match, or why that cannot stand for the term: a condition that ``when`` forgot."""
        try:
            built: Any = _call(self.build, match.found, term)
        except Error as error:
            if check.enabled():
                raise
            return f"it does not fit: {error}"
        found = dict(zip((term, match.found[self.beside]), built)) if self.beside else {term: built}
        for old, new in found.items():
            if new.meta != old.meta or new.device != old.device:
                problem = f"{_short(old)} is {old.meta}, and would become {new.meta}"
                if check.enabled():
                    raise Error(f"rewrite {self.name}: {problem}")
                return problem
        return found

    def _declines(self, term: Term, match: Match) -> str | None:
        parts = dict.fromkeys(match.inside)
        kept = (term, match.found.get(self.beside))
        waiting = [inner for inner in parts if inner not in kept and _needed_outside(inner, parts)]
        while waiting:
            inner = waiting.pop()
            if not self.shareable(inner.operation):  # type: ignore[arg-type]
                return f"{inner.operation.name()} {list(inner.shape)} stays: {_who_needs(inner, parts)}"  # type: ignore[union-attr]
            # What a view shows is needed where the view is.
            waiting += [source for source in inner.inputs if source in parts]
        return None if self.when is None else _call(self.when, match.found, term)


def _needed_outside(inner: Term, parts: Collection[Term]) -> bool:
    """Whether somebody holds a value inside a match, or an operation that is not part of it uses it."""
    if not inner.is_shared() or inner.held:
        return inner.held
    return inner.uses > sum(part.inputs.count(inner) for part in parts)


def _who_needs(inner: Term, parts: Collection[Term]) -> str:
    if inner.held:
        return "somebody holds its value"
    if _needed_outside(inner, parts):
        return f"{inner.uses} operations use its value"
    return "a view of it is needed elsewhere"


_SIGNATURES: dict[Any, tuple[str, ...]] = {}


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    if function not in _SIGNATURES:
        _SIGNATURES[function] = tuple(inspect.signature(function).parameters)
    return _SIGNATURES[function]


def _call(function: Callable[..., Any], found: dict[str, Any], term: Term) -> Any:
    """``function`` with what it asks for by name; ``root`` is the term itself, what was not found is ``None``."""
    return function(**{name: term if name == "root" else found.get(name) for name in _parameters(function)})


@dataclass(frozen=True)
class Fired:
    """A rule that was applied: its name, the place of the node it was applied at, before and after."""

    rule: str
    place: int | None
    before: str
    after: str


@dataclass(frozen=True)
class Missed:
    """A rule whose pattern was there, and the condition that was not met."""

    rule: str
    place: int | None
    reason: str


@dataclass
class Log:
    """What the passes did; in words only if ``telling``, where ``ids`` are those of the nodes by place."""

    telling: bool = False
    ids: Sequence[NodeNumber] = ()
    fired: list[Fired] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)

    def counted(self) -> Counter[str]:
        """How often each rule was applied."""
        return Counter(fired.rule for fired in self.fired)

    def note_fired(self, rule: str, before: Term, after: Term) -> None:
        """A rule was applied."""
        texts = ("", "")
        if self.telling:
            same = after.place is not None and after.place != before.place and self.ids
            texts = _short(before, self.ids), f"%{self.ids[after.place]}" if same else _short(after, self.ids)  # type: ignore[index]
        self.fired.append(Fired(rule, before.place, *texts))

    def note_missed(self, rule: str, term: Term, reason: str) -> None:
        """A rule's pattern was there, but a condition was not met."""
        if self.telling:
            self.missed.append(Missed(rule, term.place, reason))


def _short(term: Term, ids: Sequence[NodeNumber] = ()) -> str:
    """A term with its inputs, leaves by their ids, others by their operations: one line, however deep it is."""
    if term.operation is None:
        return f"%{ids[term.place] if ids and term.place is not None else term.place}"
    inputs = [_short(source, ids) if source.operation is None else source.operation.name() for source in term.inputs]
    return f"{term.operation.describe()}[{', '.join(inputs)}]"


@dataclass(frozen=True)
class Pass:
    """One subject of rewriting: a name, and either rules or a function of the whole graph.

    Of a ``quiet`` one nobody wants to hear where its rules declined: its patterns are everywhere.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    function: Callable[[TermGraph, Log], TermGraph] | None = None
    examples: tuple[Example, ...] = ()
    quiet: bool = False

    def __post_init__(self) -> None:
        # Rules share functions, so a name may be missing from one of them; from all, it would be None for ever.
        known = {"root"}.union(*(rule.pattern.names() for rule in self.rules))
        for rule in self.rules:
            if not rule.pattern.roots():
                raise AssertionError(f"rule {rule.name}: no operation can stand at the top of its pattern")
            unknown = {name for function in rule.functions() for name in _parameters(function)} - known
            unknown |= {rule.beside} - known - {""}
            if unknown:
                raise AssertionError(f"rule {rule.name}: no pattern of {self.name} has {', '.join(sorted(unknown))}")

    def run(self, graph: TermGraph, log: Log, off: Collection[str] = ()) -> TermGraph:
        """The graph after this pass; the same object if nothing changed. Rules in ``off``, "lora.add_lora", rest."""
        if self.function is not None:
            return self.function(graph, log)
        kinds = graph.kinds()
        rules = [rule for rule in self.rules if f"{self.name}.{rule.name}" not in off]
        # One rule may put there what the next one needs; but one has to begin.
        if not any(all(need & kinds for need in rule.pattern.needs()) for rule in rules):
            return graph
        table: dict[type[Operation], list[Rule]] = {}
        for rule in rules:
            for kind in rule.pattern.roots():
                table.setdefault(kind, []).append(rule)
        return _apply(graph, table, log)


def _apply(graph: TermGraph, table: dict[type[Operation], list[Rule]], log: Log) -> TermGraph:
    replaced: dict[Term, Term] = {}
    changed = late = False
    for term in graph.order:
        if term.operation is None:
            continue
        current = term
        if changed and any(source in replaced for source in term.inputs):
            inputs = tuple([_latest(source, replaced) for source in term.inputs])
            current = Term(term.operation, inputs, term.meta, term.device, term.place, term.held, term.uses)
        for _ in range(REPEATS):
            found = _first(table, current, log)
            if found is None:
                break
            for old, made in found.items():
                if old is not current:
                    if not (old.held or old.uses):
                        continue
                    # What used it may have had its turn already.
                    replaced[old] = made
                    late = True
                _count(old, made)
                if made.place is None and made.operation is not None:
                    made.place = old.place
            current = found[current]
        else:
            raise Error(f"rewrite: rules replace each other without end at {_short(term)}")
        if current is not term:
            replaced[term] = current
            changed = True
    if late:
        replaced = substituted(graph.roots, replaced)
    return rebuilt(graph, replaced) if changed else graph


def _latest(term: Term, replaced: dict[Term, Term]) -> Term:
    while term in replaced:
        term = replaced[term]
    return term


def _count(old: Term, new: Term) -> None:
    """Keep ``uses`` right where ``new`` takes the place of ``old``, so that the next rule knows who shares a value."""
    added = [new] if new.uses == 0 and not new.held and new is not old else []
    while added:
        for source in added.pop().inputs:
            if source.uses == 0 and not source.held:
                added.append(source)
            source.uses += 1
    # Whoever asked for the old value, or used it, now asks for the new one.
    new.held, new.uses = new.held or old.held, new.uses + old.uses
    old.held, old.uses = False, 0
    dropped = [old]
    while dropped:
        for source in dropped.pop().inputs:
            source.uses -= 1
            if source.uses == 0 and not source.held:
                dropped.append(source)


def _first(table: dict[type[Operation], list[Rule]], term: Term, log: Log) -> dict[Term, Term] | None:
    if term.operation is None:
        return None
    for rule in table.get(type(term.operation), ()):
        found = rule.apply(term, log)
        if found is not None:
            return found
    return None


def in_words(rules: Counter[str]) -> str:
    """Rules and how often they were applied: "lora x 2, scalar x 1"."""
    return ", ".join(f"{rule} x {count}" for rule, count in rules.items())


def rewrite(graph: TermGraph, passes: Sequence[Pass], log: Log, off: Collection[str] = ()) -> TermGraph:
    """The graph after all passes, but for those, "lora", and for those rules, "lora.add_lora", that are in ``off``."""
    for each in passes:
        if each.name not in off:
            after = each.run(graph, log, off)
            if after is not graph and check.enabled():
                check.legal(graph, after, each.name)
            graph = after
    return graph

"""Patterns: what a piece of the graph looks like, spelled with the operators it was recorded with."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Union

from .operation import Operation
from .operations.affine import Affine, DivScalar, MulScalar
from .operations.binary import Add, Div, Mul, Sub
from .operations.linalg import Matmul
from .operations.unary import Neg
from .term import Term

Found = dict[str, Any]
# What a parameter has to be: this value; or where it goes by a name, any, bound to that; or what a test accepts.
Wanted = Union["Name", Callable[[Any, Term], bool], float, int, str, bool]


class Name(str):
    """The name under which a parameter's value is found."""

    __slots__ = ()


class Match:
    """What a pattern found: terms and parameters by name, and the terms inside that a fused operation replaces."""

    __slots__ = ("found", "inside")

    def __init__(self, found: Found, inside: tuple[Term, ...] = ()) -> None:
        self.found, self.inside = found, inside

    def bind(self, name: str, value: Any) -> Match | None:
        """With one more name; ``None`` if it stands for something else already."""
        if name in self.found:
            old = self.found[name]
            return self if old is value or (not isinstance(value, Term) and old == value) else None
        return Match({**self.found, name: value}, self.inside)


NOTHING = Match({})


class Pattern(ABC):
    """Base of patterns. ``x @ a`` matches a product, ``x + y`` and ``x * y`` in either order."""

    @abstractmethod
    def match(self, term: Term, match: Match) -> Iterator[Match]:
        """Every way in which ``term`` fits, beyond what ``match`` has found already."""

    def roots(self) -> set[type[Operation]]:
        """The records that can stand at the top; empty for what cannot be a rule's whole pattern."""
        return set()

    def needs(self) -> list[frozenset[type[Operation]]]:
        """Sets of records of each of which a graph must have one."""
        return []

    def names(self) -> set[str]:
        """Every name that something may be found under."""
        return set()

    def __matmul__(self, other: Pattern) -> Pattern:
        return of(Matmul, self, other)

    def __add__(self, other: Pattern | float | Name) -> Pattern:
        if isinstance(other, Pattern):
            return Of((Add,), (self, other), {}, commutes=True)
        return of(Affine, self, mul=1.0, add=other)

    def __sub__(self, other: Pattern) -> Pattern:
        return of(Sub, self, other)

    def __mul__(self, other: Pattern | Name) -> Pattern:
        if isinstance(other, Pattern):
            return Of((Mul,), (self, other), {}, commutes=True)
        return Scaled(self, other)

    def __truediv__(self, other: Pattern) -> Pattern:
        return of(Div, self, other)

    def __or__(self, other: Pattern) -> Pattern:
        return Either((self, other))


class Anything(Pattern):
    """Any term, under a name; what goes by one name twice must be one term."""

    def __init__(self, name: str) -> None:
        self.name = name

    def match(self, term: Term, match: Match) -> Iterator[Match]:
        bound = match.bind(self.name, term)
        if bound is not None:
            yield bound

    def names(self) -> set[str]:
        return {self.name}


class Of(Pattern):
    """An operation of one of some records, on what matches ``inputs``, with these parameters."""

    def __init__(
        self,
        kinds: tuple[type[Operation], ...],
        inputs: tuple[Pattern, ...],
        parameters: Mapping[str, Wanted],
        commutes: bool = False,
        name: str | None = None,
    ) -> None:
        self.kinds, self.inputs, self.parameters, self.commutes, self.name = kinds, inputs, parameters, commutes, name

    def match(self, term: Term, match: Match) -> Iterator[Match]:
        operation = term.operation
        if type(operation) not in self.kinds or len(term.inputs) != len(self.inputs):
            return
        here: Match | None = Match(match.found, (*match.inside, term))
        for parameter, wanted in self.parameters.items():
            here = _fits(here, term, wanted, getattr(operation, parameter))
            if here is None:
                return
        if self.name is not None:
            here = here.bind(self.name, term)  # type: ignore[union-attr]
            if here is None:
                return
        yield from _match_all(self.inputs, term.inputs, here)  # type: ignore[arg-type]
        if self.commutes and term.inputs[0] is not term.inputs[1]:
            yield from _match_all(self.inputs, term.inputs[::-1], here)  # type: ignore[arg-type]

    def roots(self) -> set[type[Operation]]:
        return set(self.kinds)

    def needs(self) -> list[frozenset[type[Operation]]]:
        return [frozenset(self.kinds), *[need for pattern in self.inputs for need in pattern.needs()]]

    def names(self) -> set[str]:
        bound = {str(wanted) for wanted in self.parameters.values() if isinstance(wanted, Name)}
        own = {self.name} if self.name is not None else set()
        return bound.union(own, *(pattern.names() for pattern in self.inputs))


class Scaled(Pattern):
    """A term times a number, however that is recorded, the number under a name."""

    _KINDS = (Affine, MulScalar, DivScalar, Neg)

    def __init__(self, inner: Pattern, name: str) -> None:
        self.inner, self.name = inner, name

    def match(self, term: Term, match: Match) -> Iterator[Match]:
        factor = factor_of(term)
        if factor is not None:
            here = Match(match.found, (*match.inside, term)).bind(self.name, factor)
            if here is not None:
                yield from self.inner.match(term.inputs[0], here)

    def roots(self) -> set[type[Operation]]:
        return set(self._KINDS)

    def needs(self) -> list[frozenset[type[Operation]]]:
        return [frozenset(self._KINDS), *self.inner.needs()]

    def names(self) -> set[str]:
        return {self.name, *self.inner.names()}


class Either(Pattern):
    """What fits one of some patterns."""

    def __init__(self, patterns: tuple[Pattern, ...]) -> None:
        self.patterns = patterns

    def match(self, term: Term, match: Match) -> Iterator[Match]:
        for pattern in self.patterns:
            yield from pattern.match(term, match)

    def roots(self) -> set[type[Operation]]:
        return {kind for pattern in self.patterns for kind in pattern.roots()}

    def names(self) -> set[str]:
        return {name for pattern in self.patterns for name in pattern.names()}


class Through(Pattern):
    """What fits ``inner`` once ``look`` has looked behind operations that change no value, such as views.

    ``look`` gives the term behind and what it passed, or ``None`` if it does not apply.
    """

    def __init__(self, inner: Pattern, look: Callable[[Term], tuple[Term, tuple[Term, ...]] | None]) -> None:
        self.inner, self.look = inner, look

    def match(self, term: Term, match: Match) -> Iterator[Match]:
        seen = self.look(term)
        if seen is not None:
            behind, passed = seen
            yield from self.inner.match(behind, Match(match.found, (*match.inside, *passed)))

    def names(self) -> set[str]:
        return self.inner.names()


def anything(names: str) -> tuple[Anything, ...]:
    """Patterns for terms under these names: ``x, a, b = anything("x a b")``."""
    return tuple(Anything(name) for name in names.split())


def of(kinds: type[Operation] | tuple[type[Operation], ...], *inputs: Pattern, **parameters: Wanted) -> Of:
    """An operation of this record, or of one of some, on these inputs: ``of(Softmax, x, dim=last)``."""
    return Of(kinds if isinstance(kinds, tuple) else (kinds,), inputs, parameters)


def last(dim: int, term: Term) -> bool:
    """Whether a parameter is the last dim of the operation's input."""
    return dim in (-1, len(term.inputs[0].shape) - 1)


def factor_of(term: Term) -> float | None:
    """The number a term's input is multiplied by, if that is all it does and a float it does it to."""
    operation = term.operation
    if isinstance(operation, Affine):
        factor = operation.mul if operation.add == 0 else None
    elif isinstance(operation, MulScalar):
        factor = operation.value
    elif isinstance(operation, DivScalar):
        factor = 1 / operation.value if operation.value else None
    elif isinstance(operation, Neg):
        factor = -1.0
    else:
        return None
    # A factor of 0 ends the gradient, as in candle; a fused operation would pass one.
    return factor if factor and math.isfinite(factor) and term.dtype.is_float_ else None


def _match_all(patterns: tuple[Pattern, ...], terms: tuple[Term, ...], match: Match) -> Iterator[Match]:
    if not patterns:
        yield match
        return
    for first in patterns[0].match(terms[0], match):
        yield from _match_all(patterns[1:], terms[1:], first)


def _fits(match: Match | None, term: Term, wanted: Wanted, value: Any) -> Match | None:
    if match is None:
        return None
    if isinstance(wanted, Name):
        return match.bind(wanted, value)
    if callable(wanted):
        return match if wanted(value, term) else None
    return match if wanted == value else None

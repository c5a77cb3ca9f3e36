"""Views as rules see them: patterns that look past them, the dims they turn, terms in another shape."""

from __future__ import annotations

from ..shape import Shape
from .operation import Operation
from .operations.movement import BroadcastAs, Permute, Reshape, Squeeze, Transpose, Unsqueeze
from .operations.structure import Contiguous
from .pattern import Pattern, of
from .term import Term, apply

Seen = tuple[Term, tuple[Term, ...]]
"""A term behind views, and the views that were passed on the way."""

SAME_ORDER: tuple[type[Operation], ...] = (Reshape, Squeeze, Unsqueeze)
"""What gives the elements in their row-major order, in another shape."""


def broadcast(inner: Pattern) -> Pattern:
    """With or without the broadcast that an operation of two shapes does by itself."""
    return of(BroadcastAs, inner) | inner


def laid_out(inner: Pattern) -> Pattern:
    """With or without a copy that lays the elements out in order."""
    return inner | of(Contiguous, inner)


def turned(term: Term) -> tuple[int, ...] | None:
    """The dims of its input that the dims of a transposed or permuted term are; ``None`` for other terms."""
    operation = term.operation
    if isinstance(operation, Permute):
        return operation.dims
    if not isinstance(operation, Transpose):
        return None
    order = list(range(len(term.shape)))
    order[operation.dim1], order[operation.dim2] = operation.dim2, operation.dim1
    return tuple(order)


def last_two_swapped(rank: int) -> tuple[int, ...]:
    """The dims of a matrix transposed, or of many."""
    return (*range(rank - 2), rank - 1, rank - 2)


def behind_transposed(term: Term) -> Seen | None:
    """What has its last two dims swapped."""
    rank = len(term.shape)
    return (term.inputs[0], (term,)) if rank > 1 and turned(term) == last_two_swapped(rank) else None


def transposed(term: Term) -> Term:
    """The term with its last two dims swapped, or what it is that of."""
    seen = behind_transposed(term)
    return seen[0] if seen is not None else apply(Transpose(len(term.shape) - 2, len(term.shape) - 1), term)


def shaped(term: Term, shape: Shape) -> Term:
    """The elements in another shape, without the reshapes that gave them theirs."""
    behind = term
    while behind.shape != shape and isinstance(behind.operation, SAME_ORDER):
        behind = behind.inputs[0]
    return behind if behind.shape == shape else apply(Reshape(shape), term)


def without_contiguous(term: Term) -> Seen:
    """What a copy in order was made of."""
    passed: list[Term] = []
    while isinstance(term.operation, Contiguous):
        passed.append(term)
        term = term.inputs[0]
    return term, tuple(passed)

"""Heads of keys and values that were repeated for the queries that share them, as models spell it."""

from __future__ import annotations

from .operations.join import Cat
from .operations.movement import BroadcastAs, Reshape, Unsqueeze
from .operations.part import Slice
from .operations.repeat import Repeat
from .term import Term
from .views import Seen, without_contiguous


def behind_repeated_heads(term: Term) -> Seen | None:
    """What has each of its heads repeated n times in a row: ``(b, kv, s, d)`` of ``(b, kv · n, s, d)``.

    As candle-transformers' ``repeat_kv`` joins copies along s, as copies of a new dim after the heads, or broadcast.
    """
    if not isinstance(term.operation, Reshape) or len(term.shape) != 4:
        return None
    many, before = without_contiguous(term.inputs[0])
    if not isinstance(many.operation, (Cat, Repeat, BroadcastAs)):
        return None
    one, between = without_contiguous(many.inputs[0])
    passed = (term, *before, many, *between)
    b, heads, s, d = term.shape
    if len(many.shape) == 4:
        # Joined along s, all copies of a head come before the next head.
        fits = _copies(many, 2) and term.shape == (*one.shape[:1], one.shape[1] * len(many.inputs), *one.shape[2:])
        return (one, passed) if fits else None
    if len(many.shape) != 5 or one.shape != (b, many.shape[1], 1, s, d):
        return None
    kv, n = many.shape[1:3]
    if many.shape != (b, kv, n, s, d) or kv * n != heads or not _repeats_dim(many, 2) or not _is_reshaped(one):
        return None
    behind = one.inputs[0]
    return (behind, (*passed, one)) if behind.shape == (b, kv, s, d) else None


def _copies(many: Term, dim: int) -> bool:
    """Whether it is one tensor joined with itself along ``dim``."""
    operation = many.operation
    return isinstance(operation, Cat) and operation.dim == dim and all(part is many.inputs[0] for part in many.inputs)


def _repeats_dim(many: Term, dim: int) -> bool:
    """Whether it repeats a dim of size 1, and no other; shapes have been compared."""
    operation, ones = many.operation, (1,) * (len(many.shape) - 1)
    if isinstance(operation, Repeat):
        return operation.repeats == (*ones[:dim], many.shape[dim], *ones[dim:])
    return isinstance(operation, BroadcastAs) or _copies(many, dim)


def _is_reshaped(term: Term) -> bool:
    """Whether it is all of its input's elements in their order, in another shape."""
    operation = term.operation
    if isinstance(operation, Slice):
        return all(bounds == (0, size, 1) for bounds, size in zip(operation.slices, term.inputs[0].shape))
    return isinstance(operation, (Unsqueeze, Reshape))

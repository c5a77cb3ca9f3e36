"""Rotary embedding, spelled with halves of the last dim or with neighbours, as one operation.

Su et al. 2021, https://arxiv.org/abs/2104.09864. Spellings: candle-nn's ``rope_slow`` and ``rope_i_slow``, and
``x * cos + rotate_half(x) * sin`` of Hugging Face's models.
"""

from __future__ import annotations

import math
from typing import Any

from ...shape import Shape
from ..operation import Operation
from ..operations.affine import Affine, MulScalar
from ..operations.fused import Rope
from ..operations.index import Embedding, IndexSelect
from ..operations.join import Cat
from ..operations.movement import BroadcastAs, Reshape, Unsqueeze
from ..operations.part import Narrow, Slice
from ..operations.rope_interleaved import RopeInterleaved
from ..operations.structure import Contiguous
from ..operations.unary import Cos, Sin, ToDtype
from ..pattern import Anything, Name, Pattern, Through, last, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply
from ..views import shaped

# What gives equal halves of each row if its input's rows have them, where the last dim stays as it is.
_ROWS: tuple[type[Operation], ...] = (Contiguous, Embedding, IndexSelect, Narrow, Reshape, Slice, Unsqueeze)
_BY_ROWS: tuple[type[Operation], ...] = (*_ROWS, Affine, BroadcastAs, Cos, MulScalar, Sin, ToDtype)
# Of these, what costs nothing and is done to the half table with the same parameters.
_SAME_OF_HALVES = (Contiguous, Narrow, Unsqueeze)


def _bounds(term: Term) -> tuple[int, int, int] | None:
    """Start, stop and step in the last dim, of what takes a part of that dim only."""
    operation = term.operation
    whole = term.inputs[0].shape
    if isinstance(operation, Narrow) and last(operation.dim, term):
        return operation.start, operation.start + operation.length, 1
    if isinstance(operation, Slice) and len(operation.slices) == len(whole) == len(term.shape):
        kept = operation.dims is None or operation.dims == tuple(range(len(whole)))
        others = zip(operation.slices[:-1], whole)
        if kept and all(bounds == (0, size, 1) for bounds, size in others):
            return operation.slices[-1]
    return None


def _part(start: int, of_halves: bool) -> Pattern:
    """The first or second half of x's last dim, or every second element of it."""

    def look(term: Term) -> tuple[Term, tuple[Term, ...]] | None:
        if not isinstance(term.operation, (Narrow, Slice)):
            return None
        size = term.inputs[0].shape[-1] if term.inputs[0].shape else 0
        half = size // 2
        found = _bounds(term)
        if size % 2 or found is None or not half:
            return None
        wanted = range(start * half, (start + 1) * half) if of_halves else range(start, size, 2)
        # Ranges are equal where their numbers are, however they end.
        return (term.inputs[0], (term,)) if range(*found) == wanted else None

    return Through(_x, look)


_x, _cos, _sin = (Anything(name) for name in ("x", "cos", "sin"))
_first, _second = _part(0, True), _part(1, True)
_even, _odd = _part(0, False), _part(1, False)
_added = _x * _cos + of(Cat, _second * Name("sign"), _first, dim=last) * _sin
_halves = of(Cat, _first * _cos - _second * _sin, _first * _sin + _second * _cos, dim=last)
# Neighbours, as a last dim of two; and taken apart by a step of two.
_pairs = of(Reshape, _halves)
_stacked = of(
    Reshape,
    of(
        Cat,
        of(Unsqueeze, _even * _cos - _odd * _sin, dim=lambda dim, term: dim == len(term.shape) - 1),
        of(Unsqueeze, _even * _sin + _odd * _cos, dim=lambda dim, term: dim == len(term.shape) - 1),
        dim=last,
    ),
)


def _small(table: Term) -> Term:
    """A table without the repetition along leading dims, which the operation does itself."""
    while isinstance(table.operation, BroadcastAs):
        table = table.inputs[0]
    return table


def _repeats(table: Term) -> Term | None:
    """A table ``(…, d/2)`` of which ``table`` holds each row twice, side by side; ``None`` if that is not known."""
    table = _small(table)
    term = table
    steps: list[Operation] = []
    while isinstance(term.operation, _BY_ROWS):
        if not _keeps_rows(term):
            return None
        steps.append(term.operation)
        term = term.inputs[0]
    if not isinstance(term.operation, Cat) or not last(term.operation.dim, term):
        return None
    if len(term.inputs) != 2 or term.inputs[0] is not term.inputs[1]:
        return None
    if not all(isinstance(step, _SAME_OF_HALVES) for step in steps):
        return apply(Narrow(len(table.shape) - 1, 0, table.shape[-1] // 2), table)
    half = term.inputs[0]
    for step in reversed(steps):
        half = apply(step, half)
    return half


def _keeps_rows(term: Term) -> bool:
    """Whether the last dim is its input's last dim, each element where it was."""
    behind, operation = term.inputs[0], term.operation
    if not behind.shape or not term.shape or behind.shape[-1] != term.shape[-1]:
        return False
    if isinstance(operation, IndexSelect):
        return not last(operation.dim, term)
    if isinstance(operation, Slice) and len(operation.slices) == len(behind.shape):
        return operation.slices[-1] == (0, behind.shape[-1], 1)
    return True


def _fits(name: str, table: Term, x: Term, column: bool = False) -> str | None:
    """Why a table is not ``(t, d/2)``, but for leading dims of 1 and, as a ``column``, a last one."""
    shape = _small(table).shape
    wanted = (x.shape[-2], x.shape[-1] // 2, 1) if column else (x.shape[-2], x.shape[-1] // 2)
    if tuple(shape[-len(wanted) :]) == wanted and math.prod(shape[: -len(wanted)]) == 1:
        return None
    return f"{name} {list(table.shape)} is no table of t {wanted[0]} and d/2 {wanted[1]} for x {list(x.shape)}"


def _ranks(x: Term) -> str | None:
    if len(x.shape) not in (2, 3, 4):
        return f"x {list(x.shape)} has {len(x.shape)} dims, a rotary embedding takes 2 to 4"
    return None


def _widened(root: Term, x: Term) -> str | None:
    return None if root.shape == x.shape else f"the result is {list(root.shape)}, x is {list(x.shape)}"


def _when_added(root: Term, x: Term, cos: Term, sin: Term, sign: float) -> str | None:
    if sign != -1:
        return f"the second half is multiplied by {sign}, not by -1"
    if root.shape != x.shape:
        return _widened(root, x)
    for name, table in (("cos", cos), ("sin", sin)):
        half = _repeats(table)
        if half is None:
            return f"{name} {list(table.shape)} is not known to repeat its first half"
        reason = _ranks(x) or _fits(name, half, x)
        if reason is not None:
            return reason
    return None


def _when_halves(root: Term, x: Term, cos: Term, sin: Term) -> str | None:
    return _widened(root, x) or _ranks(x) or _fits("cos", cos, x) or _fits("sin", sin, x)


def _neighbours(root: Term, x: Term) -> Term | None:
    """What was reshaped to pairs, and is reshaped back."""
    behind = x.inputs[0] if isinstance(x.operation, Reshape) else None
    return behind if behind is not None and behind.shape == root.shape and x.shape[-1] == 2 else None


def _when_pairs(root: Term, x: Term, cos: Term, sin: Term) -> str | None:
    behind = _neighbours(root, x)
    if behind is None:
        return f"x {list(x.shape)} is not made of pairs of {list(root.shape)}"
    return _ranks(behind) or _fits("cos", cos, behind, column=True) or _fits("sin", sin, behind, column=True)


def _turned(operation: Operation, root: Term, x: Term, cos: Term, sin: Term) -> Term:
    sizes = Shape((x.shape[-2], x.shape[-1] // 2))
    tables = [shaped(_small(table), sizes) for table in (cos, sin)]
    whole = Shape((*(1,) * (4 - len(x.shape)), *x.shape))
    return shaped(apply(operation, shaped(x, whole), *tables), root.shape)


def _rope_added(root: Term, x: Term, cos: Term, sin: Term) -> Term:
    halves = [_repeats(table) for table in (cos, sin)]
    return _turned(Rope(), root, x, *[half for half in halves if half is not None])


def _rope(root: Term, x: Term, cos: Term, sin: Term) -> Term:
    return _turned(Rope(), root, x, cos, sin)


def _rope_pairs(root: Term, x: Term, cos: Term, sin: Term) -> Term:
    behind = _neighbours(root, x)
    assert behind is not None
    return _turned(RopeInterleaved(), root, behind, cos, sin)


def _rope_stacked(root: Term, x: Term, cos: Term, sin: Term) -> Term:
    return _turned(RopeInterleaved(), root, x, cos, sin)


RULES = (
    Rule("rotary_pairs", _pairs, _rope_pairs, when=_when_pairs),
    Rule("rotary_stacked", _stacked, _rope_stacked, when=_when_halves),
    Rule("rotary_rotate_half", _added, _rope_added, when=_when_added),
    Rule("rotary_halves", _halves, _rope, when=_when_halves),
)


def _cat(*parts: Any) -> Any:
    return type(parts[0]).cat(parts, -1)


def _rotate_half(x: Any) -> Any:
    half = x.dim(-1) // 2
    return _cat(-x.narrow(-1, half, half), x.narrow(-1, 0, half))


def _slow(x: Any, cos: Any, sin: Any) -> Any:
    """candle-nn's ``rope_slow``."""
    cos, sin = (_cat(t, t).narrow(0, 0, x.dim(-2)).unsqueeze(0).unsqueeze(0) for t in (cos, sin))
    return x.broadcast_mul(cos) + _rotate_half(x).broadcast_mul(sin)


def _i_slow(x: Any, cos: Any, sin: Any) -> Any:
    """candle-nn's ``rope_i_slow``."""
    b, h, t, d = x.dims4()
    cos, sin = (table.reshape((t, d // 2, 1)).broadcast_as((b, 1, t, d // 2, 1)) for table in (cos, sin))
    pairs = x.reshape((b, h, t, d // 2, 2))
    x0, x1 = pairs.narrow(-1, 0, 1), pairs.narrow(-1, 1, 1)
    y0 = x0.broadcast_mul(cos) - x1.broadcast_mul(sin)
    y1 = x0.broadcast_mul(sin) + x1.broadcast_mul(cos)
    return _cat(y0, y1).flatten_from(-2)


def _split(x: Any, cos: Any, sin: Any) -> Any:
    a, b = x.chunk(2, -1)
    return _cat(a * cos - b * sin, a * sin + b * cos)


def _sliced(x: Any, cos: Any, sin: Any) -> Any:
    half = x.dim(-1) // 2
    a, b = x[..., :half], x[..., half:]
    return _cat(cos * a - sin * b, b * cos + a * sin)


def _stepped(x: Any, cos: Any, sin: Any) -> Any:
    a, b = x[..., ::2], x[..., 1::2]
    return type(x).stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def _of_angles(x: Any, angles: Any) -> Any:
    """Hugging Face's Llama: the angles twice, their cosines and sines in x's dtype."""
    twice = _cat(angles, angles)
    cos, sin = twice.cos().unsqueeze(0), twice.sin().unsqueeze(0)
    return x * cos.unsqueeze(1) + _rotate_half(x) * sin.unsqueeze(1)


_SHAPES = ((2, 3, 5, 6), (5, 3), (5, 3))
EXAMPLES = (
    Example(
        ((2, 3, 5, 6), (7, 3), (7, 3)),
        _slow,
        "rope(x, narrow(cos; dim=0, start=0, length=5), narrow(sin; dim=0, start=0, length=5))",
    ),
    Example(_SHAPES, _split, "rope(x, cos, sin)"),
    Example(_SHAPES, _sliced, "rope(x, cos, sin)"),
    Example(
        ((3, 5, 6), (1, 5, 3), (1, 5, 3)),
        _split,
        "reshape(rope(reshape(x; shape=(1, 3, 5, 6)), reshape(cos; shape=(5, 3)), "
        "reshape(sin; shape=(5, 3))); shape=(3, 5, 6))",
    ),
    Example(((5, 6), (5, 3), (5, 3)), _split, "reshape(rope(reshape(x; shape=(1, 1, 5, 6)), cos, sin); shape=(5, 6))"),
    Example(
        ((2, 3, 5, 6), (5, 3)),
        _of_angles,
        "rope(x, reshape(narrow(unsqueeze(unsqueeze(cos(cat(angles, "
        "angles; dim=1)); dim=0); dim=1); dim=3, start=0, length=3); shape=(5, 3)), "
        "reshape(narrow(unsqueeze(unsqueeze(sin(cat(angles, angles; dim=1)); dim=0); dim=1); dim=3, "
        "start=0, length=3); shape=(5, 3)))",
    ),
    Example(_SHAPES, _i_slow, "rope_interleaved(x, cos, sin)"),
    Example(_SHAPES, _stepped, "rope_interleaved(x, cos, sin)"),
    Example(
        ((2, 3, 5, 6), (5, 6), (5, 6)),
        lambda x, cos, sin: x * cos + _rotate_half(x) * sin,
        "add(mul(x, cos), mul(cat(neg(narrow(x; dim=3, start=3, length=3)), narrow(x; dim=3, start=0, "
        "length=3); dim=3), sin))",
        because="cos [5, 6] is not known to repeat its first half",
    ),
    Example(
        _SHAPES,
        lambda x, cos, sin: x * _cat(cos, sin) + _rotate_half(x) * _cat(sin, sin),
        "add(mul(x, cat(cos, sin; dim=1)), mul(cat(neg(narrow(x; dim=3, start=3, length=3)), "
        "narrow(x; dim=3, start=0, length=3); dim=3), cat(sin, sin; dim=1)))",
        because="cos [5, 6] is not known to repeat its first half",
    ),
    Example(
        _SHAPES,
        lambda x, cos, sin: x * _cat(cos, cos) - _rotate_half(x) * _cat(sin, sin),
        "sub(mul(x, cat(cos, cos; dim=1)), mul(cat(neg(narrow(x; dim=3, start=3, length=3)), "
        "narrow(x; dim=3, start=0, length=3); dim=3), cat(sin, sin; dim=1)))",
    ),
    Example(
        _SHAPES,
        lambda x, cos, sin: x * _cat(cos, cos) + _cat(x.narrow(-1, 3, 3) * 2.0, x.narrow(-1, 0, 3)) * _cat(sin, sin),
        "add(mul(x, cat(cos, cos; dim=1)), mul(cat(affine(narrow(x; dim=3, start=3, length=3); mul=2.0, "
        "add=0.0), narrow(x; dim=3, start=0, length=3); dim=3), cat(sin, sin; dim=1)))",
        because="the second half is multiplied by 2.0, not by -1",
    ),
    Example(
        ((2, 3, 5, 6), (2, 1, 5, 3), (2, 1, 5, 3)),
        _split,
        "cat(sub(mul(narrow(x; dim=3, start=0, length=3), cos), mul(narrow(x; dim=3, start=3, "
        "length=3), sin)), add(mul(narrow(x; dim=3, start=0, length=3), sin), mul(narrow(x; dim=3, "
        "start=3, length=3), cos)); dim=3)",
        because="cos [2, 1, 5, 3] is no table of t 5 and d/2 3 for x [2, 3, 5, 6]",
    ),
    Example(
        ((1, 3, 5, 6), (5, 3), (5, 3)),
        lambda x, cos, sin: _split(x, *[table.broadcast_as((4, 1, 5, 3)) for table in (cos, sin)]),
        "cat(sub(mul(narrow(x; dim=3, start=0, length=3), broadcast_as(cos; shape=(4, 1, 5, 3))), "
        "mul(narrow(x; dim=3, start=3, length=3), broadcast_as(sin; shape=(4, 1, 5, 3)))), "
        "add(mul(narrow(x; dim=3, start=0, length=3), broadcast_as(sin; shape=(4, 1, 5, 3))), "
        "mul(narrow(x; dim=3, start=3, length=3), broadcast_as(cos; shape=(4, 1, 5, 3)))); dim=3)",
        because="the result is [4, 3, 5, 6], x is [1, 3, 5, 6]",
    ),
    Example(
        ((2, 3, 5, 6), (3, 1, 3), (3, 1, 3)),
        _split,
        "cat(sub(mul(narrow(x; dim=3, start=0, length=3), cos), mul(narrow(x; dim=3, start=3, "
        "length=3), sin)), add(mul(narrow(x; dim=3, start=0, length=3), sin), mul(narrow(x; dim=3, "
        "start=3, length=3), cos)); dim=3)",
        because="cos [3, 1, 3] is no table of t 5 and d/2 3 for x [2, 3, 5, 6]",
    ),
    Example(
        ((2, 3, 5, 6), (5, 6), (5, 6)),
        lambda x, cos, sin: x * cos + x.tanh() * sin,
        "add(mul(x, cos), mul(tanh(x), sin))",
    ),
)

PASS = Pass("rotary", RULES, examples=EXAMPLES)

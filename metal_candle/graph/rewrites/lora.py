"""Low-rank updates, spelled as products, as one operation.

Hu et al. 2021, https://arxiv.org/abs/2106.09685. The scale is applied at rank, and the gradient keeps only ``x``.
"""

from __future__ import annotations

from ..operations.fused import AddLoRA, LoRA
from ..operations.linalg import Linear
from ..operations.movement import Transpose
from ..pattern import Anything, Name, Pattern, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply

LARGEST_RANK = 256
"""Up to which inner size a product of two matrices counts as low-rank."""

_x, _a, _at, _b, _bt, _base = (Anything(name) for name in ("x", "a", "at", "b", "bt", "base"))


def _through(inner: Pattern, matrix: Pattern, rows: Pattern) -> Pattern:
    """A product with a matrix ``(in, out)``, or with a layer's weight ``(out, in)``."""
    return inner @ matrix | of(Linear, inner, rows)


_at_rank = _through(_x, _a, _at)
_delta = _through(_at_rank, _b, _bt)
_fused = of(LoRA, _x, _a, _b, scale=Name("inner"))


def _matrix(term: Term | None, rows: Term | None) -> Term:
    if term is not None:
        return term
    assert rows is not None
    return apply(Transpose(0, 1), rows)


def _low_rank(x: Term, a: Term | None, at: Term | None, b: Term | None, bt: Term | None) -> str | None:
    for name, matrix in (("A", a or at), ("B", b or bt)):
        assert matrix is not None
        if len(matrix.shape) != 2:
            return f"{name} has {len(matrix.shape)} dims, a low-rank update takes 2"
    (size, rank), out = a.shape if a is not None else at.shape[::-1], b.shape[1] if b is not None else bt.shape[0]  # type: ignore[union-attr]
    if rank > LARGEST_RANK or rank >= min(size, out):
        return f"the inner size {rank} is no low rank for a product from {size} to {out}"
    return None


def _add_low_rank(
    root: Term, base: Term, x: Term, a: Term | None, at: Term | None, b: Term | None, bt: Term | None
) -> str | None:
    return _low_rank(x, a, at, b, bt) or _of_full_shape(root, base, x, b, bt)


def _of_full_shape(root: Term, base: Term, x: Term, b: Term | None, bt: Term | None) -> str | None:
    out = b.shape[1] if b is not None else bt.shape[0]  # type: ignore[union-attr]
    if base.shape != root.shape or (*x.shape[:-1], out) != root.shape:
        return f"{list(base.shape)} and the update {[*x.shape[:-1], out]} are broadcast to {list(root.shape)}"
    return None


def _lora(x: Term, a: Term, at: Term, b: Term, bt: Term, scale: float, inner: float | None) -> Term:
    return apply(LoRA(scale * (1.0 if inner is None else inner)), x, _matrix(a, at), _matrix(b, bt))


def _add_lora(base: Term, x: Term, a: Term, at: Term, b: Term, bt: Term, inner: float | None) -> Term:
    scale = 1.0 if inner is None else inner
    return apply(AddLoRA(scale), base, x, _matrix(a, at), _matrix(b, bt))


RULES = (
    Rule("lora", _delta * Name("scale"), _lora, when=_low_rank),
    Rule("lora_scaled_at_rank", _through(_at_rank * Name("scale"), _b, _bt), _lora, when=_low_rank),
    Rule("lora_scale", _fused * Name("scale"), _lora),
    Rule("add_lora", _base + _fused, _add_lora, when=_of_full_shape),
    Rule("add_lora_unscaled", _base + _delta, _add_lora, when=_add_low_rank),
)

_SHAPES = ((5, 13), (13, 4), (4, 7))
EXAMPLES = (
    Example(_SHAPES, lambda x, a, b: x @ a @ b * 0.5, "lora(x, a, b; scale=0.5)"),
    Example(_SHAPES, lambda x, a, b: (x @ a) * 0.5 @ b, "lora(x, a, b; scale=0.5)"),
    Example(_SHAPES, lambda x, a, b: -((x @ a) * 0.5 @ b), "lora(x, a, b; scale=-0.5)"),
    Example(_SHAPES, lambda x, a, b: x @ a @ b / 2.0, "lora(x, a, b; scale=0.5)"),
    Example(
        ((5, 13), (4, 13), (7, 4)),
        lambda x, a, b: x @ a.t() @ b.t() * 2.0,
        "lora(x, transpose(a; dim1=0, dim2=1), transpose(b; dim1=0, dim2=1); scale=2.0)",
    ),
    Example(
        ((2, 5, 7), (2, 5, 13), (13, 4), (4, 7)),
        lambda base, x, a, b: base + x @ a @ b * 0.5,
        "add_lora(base, x, a, b; scale=0.5)",
    ),
    Example(
        ((5, 7), (5, 13), (13, 4), (4, 7)),
        lambda base, x, a, b: x @ a @ b + base,
        "add_lora(base, x, a, b; scale=1.0)",
    ),
    Example(
        ((7,), (5, 13), (13, 4), (4, 7)),
        lambda base, x, a, b: base + x @ a @ b * 0.5,
        "add(base, lora(x, a, b; scale=0.5))",
        because="are broadcast to [5, 7]",
    ),
    Example(
        ((5, 13), (13, 13), (13, 7)),
        lambda x, a, b: x @ a @ b * 0.5,
        "affine(matmul(matmul(x, a), b); mul=0.5, add=0.0)",
        because="the inner size 13 is no low rank for a product from 13 to 7",
    ),
    Example(
        ((2, 5, 13), (2, 13, 4), (4, 7)),
        lambda x, a, b: x @ a @ b * 0.5,
        "affine(matmul(matmul(x, a), b); mul=0.5, add=0.0)",
        because="A has 3 dims",
    ),
    Example(
        _SHAPES,
        lambda x, a, b: x @ a @ b * 0.5 + (x @ a @ b).exp(),
        "add(affine(matmul(matmul(x, a), b); mul=0.5, add=0.0), exp(matmul(matmul(x, a), b)))",
        because="matmul [5, 7] stays: 2 operations use its value",
    ),
    Example(
        _SHAPES,
        lambda x, a, b: (x @ a) * 0.5 @ b + ((x @ a) * 0.5).sum_keepdim(1),
        "add(matmul(affine(matmul(x, a); mul=0.5, add=0.0), b), "
        "sum(affine(matmul(x, a); mul=0.5, add=0.0); dims=(1,), keepdim=True))",
        because="affine [5, 4] stays: 2 operations use its value",
    ),
    Example(
        _SHAPES,
        lambda x, a, b: x @ a @ b * 0.0,
        "affine(matmul(matmul(x, a), b); mul=0.0, add=0.0)",
    ),
)

PASS = Pass("lora", RULES, examples=EXAMPLES)

"""Root-mean-square norms and layer norms, spelled out, as one operation each.

What a row is divided by is recognised as a root, its reciprocal or a power; the mean as a mean or a scaled sum. Where
halves were computed in halves, the norm now sums in float32 and is rounded once: a float16 row whose squares leave the
range keeps its values instead of becoming 0. Rows that hold an infinity, or nothing but zeros without an eps, give the
same NaN as before. Where the squares overflow, the gradient is 0 however the root is spelled: that of the reciprocal's
was NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...dtype import DType
from ...shape import Shape
from ..operation import Operation
from ..operations.affine import Affine
from ..operations.movement import BroadcastAs, Reshape, Squeeze, Unsqueeze
from ..operations.norm import LayerNorm, RMSNorm, WeightedRMSNorm
from ..operations.reduce import Mean, Sum
from ..operations.statistics import Variance
from ..operations.unary import Powf, Recip, Sqr, Sqrt, ToDtype
from ..pattern import Name, Of, Pattern, anything, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply
from ..views import broadcast

_x, _weight, _bias = anything("x weight bias")


def _at_end(dim: int, term: Term) -> bool:
    return dim == len(term.inputs[0].shape)


def _mean(inner: Pattern, name: str) -> Pattern:
    """A mean that keeps its dim, over ``<name>_dims``: the record, or a sum times ``<name>_share``."""
    dims = Name(f"{name}_dims")
    mean = of(Mean, inner, dims=dims, keepdim=True)
    later = of(Unsqueeze, of(Mean, inner, dims=dims, keepdim=False), dim=_at_end)
    return mean | later | of(Sum, inner, dims=dims, keepdim=True) * Name(f"{name}_share")


def _mean_square(inner: Pattern) -> Pattern:
    """The mean of squares, with an eps or without."""
    square = of(Sqr, inner) | inner * inner | of(Powf, inner, e=2.0)
    plain = _mean(square, "square")
    total = of(Sum, square, dims=Name("square_dims"), keepdim=True)
    # A scaled sum and its eps may have become one operation.
    both = of(Affine, total, mul=Name("square_share"), add=Name("eps"))
    return of(Affine, plain, mul=1.0, add=Name("eps")) | both | plain


def _over_root(inner: Pattern, square: Pattern) -> Pattern:
    """``inner`` divided by the root of ``square``."""
    root = of(Sqrt, square) | of(Powf, square, e=0.5)
    inverse = of(Recip, root) | of(Sqrt, of(Recip, square)) | of(Powf, square, e=-0.5)
    return inner / broadcast(root) | inner * broadcast(inverse)


_centred = _x - broadcast(_mean(_x, "mean"))
_unbiased = of(Variance, _x | _centred, dim=Name("unbiased"), keepdim=True)
_variance = _mean_square(_centred) | of(Affine, _unbiased, mul=1.0, add=Name("eps")) | _unbiased


def _normed(
    root: Term,
    x: Term,
    eps: float | None,
    square_dims: tuple[int, ...] | None,
    square_share: float | None,
    mean_dims: tuple[int, ...] | None = None,
    mean_share: float | None = None,
    unbiased: int | None = None,
) -> str | None:
    if x.shape != root.shape:
        return f"{list(x.shape)} is broadcast to {list(root.shape)}"
    if unbiased is not None:
        return "the variance is unbiased; a layer norm takes the mean of the squares"
    last, n = (len(x.shape) - 1,), x.shape[-1]
    for dims, share in ((mean_dims, mean_share), (square_dims, square_share)):
        if dims not in (None, last):
            return f"the mean is over dims {dims} of {list(x.shape)}; a norm takes the last dim"
        if share is not None and not math.isclose(share * n, 1, rel_tol=1e-6):
            return f"a sum over {n} elements is multiplied by {share:g}, which makes no mean"
    if n == 0:
        return f"{list(x.shape)} has no elements"
    if eps is not None and not 0 <= eps < math.inf:
        return f"eps is {eps:g}; a norm takes a finite number from 0"
    return None


def _row(term: Term) -> Term:
    """One row that is repeated along the leading dims, behind the views that give it these."""
    while isinstance(term.operation, (Reshape, Unsqueeze, Squeeze, BroadcastAs)):
        before = term.inputs[0]
        if before.shape[-1:] != term.shape[-1:] or not _is_row(before):
            break
        term = before
    return term


def _is_row(term: Term) -> bool:
    return len(term.shape) > 0 and math.prod(term.shape[:-1]) == 1


def _not_for(x: Term, root: Term, name: str, beside: Term) -> str | None:
    row = _row(beside)
    if root.shape != x.shape or not _is_row(row) or row.shape[-1] != x.shape[-1]:
        return f"{list(beside.shape)} is no {name} for {list(x.shape)}; takes ({x.shape[-1]},)"
    return None


def _as_row(beside: Term) -> Term:
    row = _row(beside)
    return row if len(row.shape) == 1 else apply(Reshape(Shape(row.shape[-1:])), row)


def _takes_weight(x: Term, root: Term, weight: Term) -> str | None:
    return _not_for(x, root, "weight", weight)


def _weighted(
    root: Term,
    x: Term,
    weight: Term,
    eps: float | None,
    square_dims: tuple[int, ...],
    square_share: float | None,
) -> str | None:
    return _normed(root, x, eps, square_dims, square_share) or _takes_weight(x, root, weight)


def _takes_bias(x: Term, root: Term, bias: Term) -> str | None:
    return _not_for(x, root, "bias", bias)


_wide = of(ToDtype, _x, dtype=Name("wide"))
_in_wide = (
    Of((RMSNorm, LayerNorm), (_wide,), {}, name="norm")
    | Of((WeightedRMSNorm, LayerNorm), (_wide, _weight), {}, name="norm")
    | Of((LayerNorm,), (_wide, _weight, _bias), {}, name="norm")
)


def _narrow(beside: Term | None, dtype: DType) -> Term | None:
    """A weight in its own dtype, if that is ``dtype`` and the norm's is wider."""
    if beside is None or not isinstance(beside.operation, ToDtype) or beside.inputs[0].dtype is not dtype:
        return None
    return beside.inputs[0]


def _of_halves(root: Term, x: Term, wide: DType, weight: Term | None, bias: Term | None) -> str | None:
    if wide is not DType.F32 or x.dtype not in (DType.F16, DType.BF16):
        return f"the norm of {x.dtype} is computed in {wide}; the one operation computes halves in f32"
    if root.dtype is not x.dtype:
        return f"the norm of {x.dtype} is given as {root.dtype}"
    for name, beside in (("weight", weight), ("bias", bias)):
        if beside is not None and _narrow(beside, x.dtype) is None:
            return f"the {name} is applied in {wide}; the one operation takes it in {x.dtype}"
    return None


def _norm_of_halves(norm: Term, x: Term, weight: Term | None, bias: Term | None) -> Term:
    beside = [_narrow(each, x.dtype) for each in (weight, bias)]
    return apply(norm.operation, x, *[each for each in beside if each is not None])  # type: ignore[arg-type]


def _free(operation: Operation) -> bool:
    """Beside views, a cast: the operations that use it go on using it, and the norm computes its own."""
    return operation.is_view or isinstance(operation, ToDtype)


RULES = (
    Rule(
        "layer_norm",
        _over_root(_centred, _variance),
        lambda x, eps: apply(LayerNorm(eps or 0.0), x),
        when=_normed,
    ),
    Rule("rms_norm", _over_root(_x, _mean_square(_x)), lambda x, eps: apply(RMSNorm(eps or 0.0), x), when=_normed),
    Rule(
        "rms_norm_weight_first",
        _over_root(_x * _weight, _mean_square(_x)),
        lambda x, weight, eps: apply(WeightedRMSNorm(eps or 0.0), x, _as_row(weight)),
        when=_weighted,
    ),
    Rule("norm_of_halves", of(ToDtype, _in_wide), _norm_of_halves, when=_of_halves, shareable=_free),
    Rule(
        "rms_norm_weight",
        of(RMSNorm, _x, eps=Name("eps")) * _weight,
        lambda x, weight, eps: apply(WeightedRMSNorm(eps), x, _as_row(weight)),
        when=_takes_weight,
    ),
    Rule(
        "layer_norm_weight",
        of(LayerNorm, _x, eps=Name("eps")) * _weight,
        lambda x, weight, eps: apply(LayerNorm(eps), x, _as_row(weight)),
        when=_takes_weight,
    ),
    Rule(
        "layer_norm_bias",
        of(LayerNorm, _x, _weight, eps=Name("eps")) + _bias,
        lambda x, weight, bias, eps: apply(LayerNorm(eps), x, weight, _as_row(bias)),
        when=_takes_bias,
    ),
)

_ONE = ((5, 13),)
_TWO = ((2, 3, 13), (13,))


def _in_f32(x: Any, norm: Callable[[Any], Any]) -> Any:
    return norm(x.to_dtype("f32")).to_dtype(x.dtype)


def _candle_layer_norm(x: Any, n: int) -> Any:
    centred = x.broadcast_sub(x.sum_keepdim(-1) / n)
    return centred.broadcast_div((centred.sqr().sum_keepdim(-1) / n + 1e-5).sqrt())


EXAMPLES = (
    Example(_ONE, lambda x: x / (x.sqr().mean_keepdim(-1) + 1e-5).sqrt(), "rms_norm(x; eps=1e-05)"),
    Example(_ONE, lambda x: x.broadcast_div(((x * x).sum_keepdim(1) / 13 + 1e-5).sqrt()), "rms_norm(x; eps=1e-05)"),
    Example(_ONE, lambda x: (x.powf(2.0).mean_keepdim(1) + 1e-5).powf(-0.5) * x, "rms_norm(x; eps=1e-05)"),
    Example(_ONE, lambda x: x * (x.sqr().sum_keepdim(1) * (1 / 13) + 1e-5).recip().sqrt(), "rms_norm(x; eps=1e-05)"),
    Example(_ONE, lambda x: x * x.sqr().sum_keepdim(1).affine(1 / 13, 1e-5).sqrt().recip(), "rms_norm(x; eps=1e-05)"),
    Example(_ONE, lambda x: x / x.sqr().mean_keepdim(1).powf(0.5), "rms_norm(x; eps=0.0)"),
    Example(
        _ONE,
        lambda x: x / (x.sqr().mean(1).unsqueeze(1) + 1e-5).sqrt().broadcast_as((5, 13)),
        "rms_norm(x; eps=1e-05)",
    ),
    Example(
        _TWO,
        lambda x, w: (x / (x.sqr().mean_keepdim(-1) + 1e-5).sqrt()).broadcast_mul(w),
        "weighted_rms_norm(x, w; eps=1e-05)",
    ),
    Example(
        _TWO,
        lambda x, w: (1 + w) * (x * (x.sqr().mean_keepdim(-1) + 1e-5).powf(-0.5)),
        "weighted_rms_norm(x, affine(w; mul=1.0, add=1.0); eps=1e-05)",
    ),
    Example(
        _TWO,
        lambda x, w: w * x * (x.sqr().mean_keepdim(-1) + 1e-5).sqrt().recip(),
        "weighted_rms_norm(x, w; eps=1e-05)",
    ),
    Example(_TWO, lambda x, w: x.rms_norm(1e-5) * w.reshape((1, 1, 13)), "weighted_rms_norm(x, w; eps=1e-05)"),
    Example(
        ((5, 13), (1, 13)),
        lambda x, w: w.broadcast_as((5, 13)) * x.rms_norm(1e-5),
        "weighted_rms_norm(x, reshape(w; shape=(13,)); eps=1e-05)",
    ),
    Example(
        _ONE,
        lambda x: (x - x.mean_keepdim(1)) / ((x - x.mean_keepdim(1)).sqr().mean_keepdim(1) + 1e-5).sqrt(),
        "layer_norm(x; eps=1e-05)",
    ),
    Example(
        ((2, 3, 13), (13,), (13,)),
        lambda x, w, b: _candle_layer_norm(x, 13).broadcast_mul(w).broadcast_add(b),
        "layer_norm(x, w, b; eps=1e-05)",
    ),
    Example(_TWO, lambda x, b: x.layer_norm(1e-5) + b, "add(layer_norm(x; eps=1e-05), b)"),
    Example(
        ((2, 5, 13), (1, 1, 13), (13,)),
        lambda x, w, b: b + w * x.layer_norm(1e-5),
        "layer_norm(x, reshape(w; shape=(13,)), b; eps=1e-05)",
    ),
    # Halves in float32, as candle's slow norms and Llama do: the weight after the cast back.
    Example(
        _TWO,
        lambda x, w: _in_f32(x, lambda wide: wide / (wide.sqr().mean_keepdim(-1) + 1e-5).sqrt()) * w,
        "weighted_rms_norm(x, w; eps=1e-05)",
        dtypes=("bf16", "f16"),
    ),
    Example(
        ((2, 3, 13), (13,), (13,)),
        lambda x, w, b: _in_f32(x, lambda wide: _candle_layer_norm(wide, 13)) * w + b,
        "layer_norm(x, w, b; eps=1e-05)",
        dtypes=("bf16", "f16"),
    ),
    Example(
        _TWO,
        lambda x, w: _in_f32(x, lambda wide: wide.rms_norm(1e-5) * w.to_dtype("f32")),
        "weighted_rms_norm(x, w; eps=1e-05)",
        dtypes=("bf16",),
    ),
    # Gemma: 1 + weight is never a half.
    Example(
        _TWO,
        lambda x, w: _in_f32(x, lambda wide: wide.rms_norm(1e-5) * (1 + w.to_dtype("f32"))),
        "to_dtype(weighted_rms_norm(to_dtype(x; dtype=f32), affine(to_dtype(w; dtype=f32); mul=1.0, add=1.0); "
        "eps=1e-05); dtype=bf16)",
        because="the weight is applied in f32; the one operation takes it in bf16",
        dtypes=("bf16",),
    ),
    Example(
        _ONE,
        lambda x: x.to_dtype("f64").rms_norm(1e-5).to_dtype(x.dtype),
        "to_dtype(rms_norm(to_dtype(x; dtype=f64); eps=1e-05); dtype=f32)",
        because="the norm of f32 is computed in f64",
    ),
    Example(
        _ONE,
        lambda x: x.to_dtype("f32").rms_norm(1e-5).to_dtype("f16"),
        "to_dtype(rms_norm(to_dtype(x; dtype=f32); eps=1e-05); dtype=f16)",
        because="the norm of bf16 is given as f16",
        dtypes=("bf16",),
    ),
    Example(
        _ONE,
        lambda x: x / (x.sqr().mean_keepdim(0) + 1e-5).sqrt(),
        "div(x, sqrt(affine(mean(sqr(x); dims=(0,), keepdim=True); mul=1.0, add=1e-05)))",
        because="the mean is over dims (0,) of [5, 13]",
    ),
    Example(
        _ONE,
        lambda x: x / (x.sqr().mean_keepdim((0, 1)) + 1e-5).sqrt(),
        "div(x, sqrt(affine(mean(sqr(x); dims=(0, 1), keepdim=True); mul=1.0, add=1e-05)))",
        because="the mean is over dims (0, 1)",
    ),
    Example(
        _ONE,
        lambda x: x / (x.sqr().sum_keepdim(1) * 0.5 + 1e-5).sqrt(),
        "div(x, sqrt(affine(affine(sum(sqr(x); dims=(1,), keepdim=True); mul=0.5, add=0.0); mul=1.0, add=1e-05)))",
        because="a sum over 13 elements is multiplied by 0.5",
    ),
    Example(
        _ONE,
        lambda x: x / (x.sqr().sum_keepdim(1) + 1e-5).sqrt(),
        "div(x, sqrt(affine(sum(sqr(x); dims=(1,), keepdim=True); mul=1.0, add=1e-05)))",
        because="a sum over 13 elements is multiplied by 1",
    ),
    Example(
        ((5, 5),),
        lambda x: x / (x.sqr().mean(1).unsqueeze(0) + 1e-5).sqrt(),
        "div(x, sqrt(affine(unsqueeze(mean(sqr(x); dims=(1,), keepdim=False); dim=0); mul=1.0, add=1e-05)))",
    ),
    Example(
        _ONE,
        lambda x: x / ((x.sqr().mean_keepdim(1) + 1e-5).sqrt() + 1e-6),
        "div(x, affine(sqrt(affine(mean(sqr(x); dims=(1,), keepdim=True); mul=1.0, add=1e-05)); mul=1.0, add=1e-06))",
    ),
    Example(
        _ONE,
        lambda x: (x - x.mean_keepdim(1)) / (x.var_keepdim(1) + 1e-5).sqrt(),
        "div(sub(x, mean(x; dims=(1,), keepdim=True)), sqrt(affine(var(x; dim=1, keepdim=True); mul=1.0, add=1e-05)))",
        because="the variance is unbiased",
    ),
    # Centred over the rows: of that, the norm over each row.
    Example(
        _ONE,
        lambda x: (x - x.mean_keepdim(0)) / ((x - x.mean_keepdim(0)).sqr().mean_keepdim(1) + 1e-5).sqrt(),
        "rms_norm(sub(x, mean(x; dims=(0,), keepdim=True)); eps=1e-05)",
        because="the mean is over dims (0,) of [5, 13]",
    ),
    Example(
        ((5, 13), (5, 1)),
        lambda x, w: x.rms_norm(1e-5) * w,
        "mul(rms_norm(x; eps=1e-05), w)",
        because="[5, 1] is no weight for [5, 13]; takes (13,)",
    ),
    Example(
        ((5, 13), (5, 13)),
        lambda x, w: x * w / (x.sqr().mean_keepdim(1) + 1e-5).sqrt(),
        "div(mul(x, w), sqrt(affine(mean(sqr(x); dims=(1,), keepdim=True); mul=1.0, add=1e-05)))",
        because="[5, 13] is no weight for [5, 13]",
    ),
    Example(
        ((13,), (5, 13)),
        lambda x, w: x.layer_norm(1e-5) * w,
        "mul(layer_norm(x; eps=1e-05), w)",
        because="[5, 13] is no weight for [13]",
    ),
    Example(
        ((5, 13), (13,), (5, 13)),
        lambda x, w, b: x.layer_norm(1e-5) * w + b,
        "add(layer_norm(x, w; eps=1e-05), b)",
        because="[5, 13] is no bias for [5, 13]",
    ),
    Example(
        _ONE,
        lambda x: x / (x.sqr().mean_keepdim(1) + 1e-5).sqrt() * (x.sqr().mean_keepdim(1) + 1e-5),
        "mul(div(x, sqrt(affine(mean(sqr(x); dims=(1,), keepdim=True); mul=1.0, add=1e-05))), "
        "affine(mean(sqr(x); dims=(1,), keepdim=True); mul=1.0, add=1e-05))",
        because="stays: 2 operations use its value",
    ),
)

PASS = Pass("norm", RULES, examples=EXAMPLES)

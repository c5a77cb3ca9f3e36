"""Scores, mask, softmax and values, spelled out, as one attention.

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762. Heads of k and v that were repeated for the queries that share
them are not. Of halves everything between q and the result is computed in float32 and rounded once. A row without a
finite score is NaN as before on the CPU; MLX's kernel on a GPU may give something else there.
"""

from __future__ import annotations

import math
from typing import Any

from ...dtype import DType
from ...shape import Shape
from ..heads import behind_repeated_heads
from ..operations.filled_attention import FilledSdpa
from ..operations.fused import Sdpa
from ..operations.index import WhereCond
from ..operations.movement import BroadcastAs
from ..operations.norm import Softmax
from ..operations.random import Dropout
from ..operations.unary import ToDtype
from ..pattern import Name, Of, Pattern, Through, anything, last, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply
from ..views import behind_transposed, broadcast, laid_out, shaped, transposed


def _widened(inner: Pattern) -> Pattern:
    """With or without a cast of halves to float32."""
    return inner | of(ToDtype, inner, dtype=_widens)


def _widens(dtype: DType, term: Term) -> bool:
    return dtype is DType.F32 and term.inputs[0].dtype in (DType.F16, DType.BF16)


def _scaled(inner: Pattern, name: str) -> Pattern:
    return inner * Name(name) | inner


_q, _k, _kt, _v, _bias, _seeing, _hiding, _fill, _key = anything("q k kt v bias seeing hiding fill key")

_turned = Through(laid_out(_scaled(_k, "on_k")), behind_transposed)
_product = _scaled(_q, "on_q") @ (laid_out(_scaled(laid_out(_turned), "on_kt")) | _kt)
_scores = _widened(_scaled(_widened(laid_out(_product)), "scale"))
_filling = broadcast(_fill)
_masked = (
    of(WhereCond, broadcast(_hiding), _filling, _scores)
    | of(WhereCond, broadcast(_seeing), _scores, _filling)
    | _scores + broadcast(_bias)
    | _scores
)
_soft = of(Softmax, laid_out(_widened(_masked)), dim=last)
_weights = laid_out(_soft | of(ToDtype, _soft))
_attended = (_weights | of(Dropout, _weights, _key)) @ _v


def _of_four(shape: Shape) -> tuple[int, ...]:
    """``(b, h, …, …)``, with 1 for the leading dims that are not there."""
    return (*(1,) * (4 - len(shape)), *shape)


def _keys(k: Term | None, kt: Term | None) -> Term:
    if k is not None:
        return k
    assert kt is not None
    return transposed(kt)


def _when(
    root: Term,
    q: Term,
    k: Term | None,
    kt: Term | None,
    v: Term,
    bias: Term | None,
    seeing: Term | None,
    hiding: Term | None,
    fill: Term | None,
    key: Term | None,
) -> str | None:
    if key is not None:
        return "the weights go through dropout"
    keys = _keys(k, kt)
    if any(not 2 <= len(term.shape) <= 4 for term in (root, q, keys, v)):
        return f"q {list(q.shape)}, k {list(keys.shape)}, v {list(v.shape)}: attention takes 2 to 4 dims"
    if root.dtype is not q.dtype:
        return f"from {q.dtype} the weights are cast to {root.dtype}"
    (b, h, t, _), (kb, kv, s, _), (vb, values, of_v, _) = (_of_four(term.shape) for term in (q, keys, v))
    if _of_four(root.shape)[:3] != (b, h, t):
        return f"q {list(q.shape)} is repeated to {list(root.shape[:-1])}"
    if of_v != s:
        return f"k {list(keys.shape)} is repeated for v {list(v.shape)}"
    if kb not in (1, b) or vb not in (1, b) or h % max(kv, 1) or (kv != values and 1 not in (kv, values)):
        return f"k {list(keys.shape)} and v {list(v.shape)} are no heads for q {list(q.shape)}"
    if fill is not None and fill.shape.elem_count() != 1:
        return f"hidden scores are filled from {list(fill.shape)}, not with one number"
    for mask in (bias, seeing, hiding):
        if mask is not None and not _broadcasts(mask.shape, (b, h, t, s)):
            return f"the mask {list(mask.shape)} does not broadcast to {[b, h, t, s]}"
    return None


def _broadcasts(shape: Shape, to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape[::-1], to[::-1]))


def _attention(
    root: Term,
    q: Term,
    k: Term | None,
    kt: Term | None,
    v: Term,
    bias: Term | None,
    seeing: Term | None,
    hiding: Term | None,
    fill: Term | None,
    on_q: float | None,
    on_k: float | None,
    on_kt: float | None,
    scale: float | None,
) -> Term:
    factor = math.prod(1.0 if number is None else number for number in (on_q, on_k, on_kt, scale))
    queries, keys, values = (shaped(term, Shape(_of_four(term.shape))) for term in (q, _keys(k, kt), v))
    heads = (queries.shape[0], max(keys.shape[1], values.shape[1]))
    keys, values = (_repeated(term, Shape((*heads, *term.shape[2:]))) for term in (keys, values))
    taken = [queries, keys, values]
    mask = seeing or hiding
    if mask is not None:
        assert fill is not None
        made = apply(FilledSdpa(factor, False, hiding is not None), *taken, mask, fill)
    elif bias is None:
        made = apply(Sdpa(factor, False), *taken)
    else:
        # A mask in float32 is not rounded to the half that q is.
        taken = [_cast(term, bias.dtype) for term in taken]
        made = apply(Sdpa(factor, False), *taken, bias)
    return _cast(shaped(made, root.shape), root.dtype)


def _repeated(term: Term, shape: Shape) -> Term:
    return term if term.shape == shape else apply(BroadcastAs(shape), term)


def _cast(term: Term, dtype: DType) -> Term:
    return term if term.dtype is dtype else apply(ToDtype(dtype), term)


def _with_masks(q: Pattern, k: Pattern, v: Pattern) -> Pattern:
    """Attention, without a mask, with one, and with one and what it fills with."""
    masks = anything("mask fill")
    plain, filled = (Of((kind,), (q, k, v, *masks[:n]), {}, name="made") for kind, n in ((Sdpa, 1), (FilledSdpa, 2)))
    return Of((Sdpa,), (q, k, v), {}, name="made") | plain | filled


_cast_back = of(ToDtype, _with_masks(*[of(ToDtype, x) for x in (_q, _k, _v)]))
_of_repeated = _with_masks(_q, *[Through(x, behind_repeated_heads) for x in (_k, _v)])


def _when_half(root: Term, q: Term, k: Term, v: Term, made: Term, mask: Term | None) -> str | None:
    if made.dtype is not DType.F32 or any(term.dtype is not root.dtype for term in (q, k, v)):
        return f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}, attention {made.dtype} and the result {root.dtype}"
    if mask is not None and mask.dtype.is_float_:
        return f"a mask of {mask.dtype} is added, which would be rounded to {root.dtype}"
    return None


def _in_half(q: Term, k: Term, v: Term, made: Term, mask: Term | None, fill: Term | None) -> Term:
    assert made.operation is not None
    return apply(made.operation, q, k, v, *[term for term in (mask, fill) if term is not None])


def _when_grouped(k: Term, v: Term) -> str | None:
    if k.shape[:3] == v.shape[:3]:
        return None
    return f"k is repeated from {k.shape[1]} heads and v from {v.shape[1]}"


RULES = (
    Rule("attention", _attended, _attention, when=_when),
    Rule("attention_in_half", _cast_back, _in_half, when=_when_half),
    Rule("attention_grouped", _of_repeated, _in_half, when=_when_grouped),
)


def _repeat_kv(x: Any, n: int) -> Any:
    """candle-transformers' ``repeat_kv``."""
    b, kv, s, d = x.dims4()
    return type(x).cat([x] * n, 2).reshape((b, kv * n, s, d))


def _expanded(x: Any, n: int) -> Any:
    """Hugging Face's ``repeat_kv``."""
    b, kv, s, d = x.dims4()
    return x[:, :, None, :, :].expand((b, kv, n, s, d)).reshape((b, kv * n, s, d))


def _turns(x: Any, y: Any, dim: int = 1) -> Any:
    """Two tensors' heads, joined and shaped as if they were one's."""
    b, kv, s, d = x.dims4()
    return type(x).cat([x, y], dim).reshape((b, 2 * kv, s, d))


def _backward(x: Any, n: int) -> Any:
    """Heads repeated, their positions from the last to the first."""
    b, kv, s, d = x.dims4()
    return x[:, :, None, ::-1, :].expand((b, kv, n, s, d)).reshape((b, kv * n, s, d))


def _tiled(x: Any, n: int) -> Any:
    """All heads of one batch, and then all of them again."""
    _, kv, s, d = x.dims4()
    return x.broadcast_as((n, 1, kv, s, d)).reshape((1, n * kv, s, d))


def _filled(scores: Any, mask: Any, fill: float = -math.inf) -> Any:
    """candle's ``masked_fill``."""
    mask = mask.broadcast_as(scores.shape)
    on_true = type(scores).new(fill).to_dtype(scores.dtype).broadcast_as(scores.shape)
    return mask.where_cond(on_true, scores)


def _kept(scores: Any, mask: Any) -> Any:
    below = type(scores).new(-1e9).to_dtype(scores.dtype).broadcast_as(scores.shape)
    return mask.broadcast_as(scores.shape).where_cond(scores, below)


def _in_float32(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """candle-transformers' Llama: everything in float32, whatever the model's dtype."""
    k, v = _repeat_kv(k, 2), _repeat_kv(v, 2)
    q, k, v, back = q.to_dtype("f32"), k.to_dtype("f32"), v.to_dtype("f32"), q.dtype
    scores = _filled(q.matmul(k.t()) / 2.0, mask)
    return scores.softmax(-1).matmul(v.contiguous()).to_dtype(back)


def _softmax_in_float32(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Hugging Face's Llama: the softmax in float32, the weights in the model's dtype."""
    scores = (q @ _expanded(k, 2).transpose(2, 3)) * 0.5 + mask
    return scores.to_dtype("f32").softmax(-1).to_dtype(q.dtype) @ _expanded(v, 2)


_FOUR = ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6))
_GROUPED = ((2, 4, 5, 4), (2, 2, 7, 4), (2, 2, 7, 4))
EXAMPLES = (
    Example(_FOUR, lambda q, k, v: (q @ k.t()).softmax(-1) @ v, "sdpa(q, k, v; scale=1.0, causal=False)"),
    Example(
        _FOUR,
        lambda q, k, v: (q.matmul(k.transpose(2, 3)) / 2.0).softmax(3).matmul(v),
        "sdpa(q, k, v; scale=0.5, causal=False)",
    ),
    Example(
        _FOUR,
        lambda q, k, v: ((q * 0.5) @ (k.permute((0, 1, 3, 2)).contiguous() * 0.5)).softmax(-1) @ v,
        "sdpa(q, k, v; scale=0.25, causal=False)",
    ),
    Example(_FOUR, lambda q, k, v: (q @ (k * 0.5).t()).softmax(-1) @ v, "sdpa(q, k, v; scale=0.5, causal=False)"),
    Example(
        ((2, 3, 5, 4), (2, 3, 4, 7), (2, 3, 7, 6)),
        lambda q, k, v: (q @ k).softmax(-1) @ v,
        "sdpa(q, transpose(k; dim1=2, dim2=3), v; scale=1.0, causal=False)",
    ),
    Example(
        ((2, 3, 5, 4), (2, 3, 4, 4), (2, 3, 4, 6)),
        lambda q, k, v: (q @ k).softmax(-1) @ v,
        "sdpa(q, transpose(k; dim1=2, dim2=3), v; scale=1.0, causal=False)",
    ),
    Example(
        ((3, 5, 4), (3, 7, 4), (3, 7, 4), (5, 7)),
        lambda q, k, v, m: (q @ k.t() * 0.5 + m).softmax(-1) @ v,
        "reshape(sdpa(reshape(q; shape=(1, 3, 5, 4)), reshape(k; shape=(1, 3, 7, 4)), "
        "reshape(v; shape=(1, 3, 7, 4)), m; scale=0.5, causal=False); shape=(3, 5, 4))",
    ),
    Example(
        ((5, 4), (7, 4), (7, 3)),
        lambda q, k, v: (q @ k.t()).softmax(-1) @ v,
        "reshape(sdpa(reshape(q; shape=(1, 1, 5, 4)), reshape(k; shape=(1, 1, 7, 4)), "
        "reshape(v; shape=(1, 1, 7, 3)); scale=1.0, causal=False); shape=(5, 3))",
    ),
    Example(
        (*_FOUR, (2, 1, 1, 7)),
        lambda q, k, v, m: (m.broadcast_as((2, 3, 5, 7)) + q @ k.t() * 0.5).softmax(-1) @ v,
        "sdpa(q, k, v, m; scale=0.5, causal=False)",
    ),
    Example(
        (*_FOUR, (5, 7)),
        lambda q, k, v, m: _filled(q @ k.t() * 0.5, m).softmax(-1) @ v,
        "filled_sdpa(q, k, v, m, constant; scale=0.5, causal=False, hides=True)",
        ids=((3, 2),),
    ),
    Example(
        (*_FOUR, (5, 7)),
        lambda q, k, v, m: _kept(q @ k.t(), m).softmax(-1) @ v,
        "filled_sdpa(q, k, v, m, constant; scale=1.0, causal=False, hides=False)",
        ids=((3, 2),),
    ),
    Example(
        _GROUPED,
        lambda q, k, v: (q @ _repeat_kv(k, 2).t() * 0.5).softmax(-1) @ _repeat_kv(v, 2),
        "sdpa(q, k, v; scale=0.5, causal=False)",
    ),
    Example(
        ((2, 4, 5, 4), (2, 1, 7, 4), (2, 1, 7, 4)),
        lambda q, k, v: (q @ k.t() * 0.5).softmax(-1) @ v,
        "sdpa(q, k, v; scale=0.5, causal=False)",
    ),
    Example(
        (*_GROUPED, (5, 7)),
        _in_float32,
        "filled_sdpa(q, k, v, mask, constant; scale=0.5, causal=False, hides=True)",
        ids=((3, 2),),
        dtypes=("bf16", "f32", "f16"),
    ),
    Example(
        (*_GROUPED, (5, 7)),
        _softmax_in_float32,
        "sdpa(q, k, v, mask; scale=0.5, causal=False)",
        dtypes=("bf16", "f32", "f16"),
    ),
    Example(
        (*_FOUR, (5, 7)),
        lambda q, k, v, m: ((q @ k.t()).to_dtype("f32") + m.to_dtype("f32")).softmax(-1).to_dtype(q.dtype) @ v,
        "to_dtype(sdpa(to_dtype(q; dtype=f32), to_dtype(k; dtype=f32), to_dtype(v; dtype=f32), "
        "to_dtype(m; dtype=f32); scale=1.0, causal=False); dtype=bf16)",
        dtypes=("bf16", "f32"),
    ),
    Example(
        _FOUR,
        lambda q, k, v: (q @ k.t()).softmax(-2) @ v,
        "matmul(softmax(matmul(q, transpose(k; dim1=2, dim2=3)); dim=2), v)",
    ),
    Example(
        _GROUPED,
        lambda q, k, v: (q @ k.repeat((1, 2, 1, 1)).t()).softmax(-1) @ v.repeat((1, 2, 1, 1)),
        "sdpa(q, repeat(k; repeats=(1, 2, 1, 1)), repeat(v; repeats=(1, 2, 1, 1)); scale=1.0, causal=False)",
    ),
    Example(
        _GROUPED,
        lambda q, k, v: (q @ _backward(k, 2).t()).softmax(-1) @ _backward(v, 2),
        "sdpa(q, reshape(broadcast_as(slice(k; slices=((0, 2, 1), (0, 2, 1), (6, -1, -1), (0, 4, 1)), "
        "dims=(0, 1, -1, 2, 3)); shape=(2, 2, 2, 7, 4)); shape=(2, 4, 7, 4)), reshape(broadcast_as(slice(v; "
        "slices=((0, 2, 1), (0, 2, 1), (6, -1, -1), (0, 4, 1)), dims=(0, 1, -1, 2, 3)); shape=(2, 2, 2, 7, 4)); "
        "shape=(2, 4, 7, 4)); scale=1.0, causal=False)",
    ),
    Example(
        ((1, 4, 5, 4), (1, 2, 7, 4), (1, 2, 7, 4)),
        lambda q, k, v: (q @ _tiled(k, 2).t()).softmax(-1) @ _tiled(v, 2),
        "sdpa(q, reshape(broadcast_as(k; shape=(2, 1, 2, 7, 4)); shape=(1, 4, 7, 4)), "
        "reshape(broadcast_as(v; shape=(2, 1, 2, 7, 4)); shape=(1, 4, 7, 4)); scale=1.0, causal=False)",
    ),
    # Heads as a whole one after another are others' than each of them twice.
    Example(
        _GROUPED,
        lambda q, k, v: (q @ _turns(k, k).t()).softmax(-1) @ _turns(v, v),
        "sdpa(q, reshape(cat(k, k; dim=1); shape=(2, 4, 7, 4)), reshape(cat(v, v; dim=1); shape=(2, 4, 7, 4)); "
        "scale=1.0, causal=False)",
    ),
    Example(
        _GROUPED,
        lambda q, k, v: (q @ _turns(k, v, 2).t()).softmax(-1) @ _turns(v, k, 2),
        "sdpa(q, reshape(cat(k, v; dim=2); shape=(2, 4, 7, 4)), reshape(cat(v, k; dim=2); shape=(2, 4, 7, 4)); "
        "scale=1.0, causal=False)",
    ),
    Example(
        _FOUR,
        lambda q, k, v: ((q.to_dtype("f64") @ k.to_dtype("f64").t()).softmax(-1) @ v.to_dtype("f64")).to_dtype("f32"),
        "to_dtype(sdpa(to_dtype(q; dtype=f64), to_dtype(k; dtype=f64), to_dtype(v; dtype=f64); "
        "scale=1.0, causal=False); dtype=f32)",
        because="attention f64 and the result f32",
        dtypes=("f32",),
    ),
    Example(
        _FOUR,
        lambda q, k, v: (q @ k.t()).softmax(-1).to_dtype("f16") @ v.to_dtype("f16"),
        "matmul(to_dtype(softmax(matmul(q, transpose(k; dim1=2, dim2=3)); dim=3); dtype=f16), to_dtype(v; dtype=f16))",
        because="from f32 the weights are cast to f16",
        dtypes=("f32",),
    ),
    Example(
        ((2, 2, 3, 5, 4), (2, 2, 3, 7, 4), (2, 2, 3, 7, 4)),
        lambda q, k, v: (q @ k.t()).softmax(-1) @ v,
        "matmul(softmax(matmul(q, transpose(k; dim1=3, dim2=4)); dim=4), v)",
        because="attention takes 2 to 4 dims",
    ),
    Example(
        ((3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)),
        lambda q, k, v: (q @ k.t()).softmax(-1) @ v,
        "matmul(softmax(matmul(q, transpose(k; dim1=2, dim2=3)); dim=3), v)",
        because="q [3, 5, 4] is repeated to [2, 3, 5]",
    ),
    Example(
        ((3, 5, 4), (3, 7, 4), (3, 7, 4), (2, 1, 5, 7)),
        lambda q, k, v, m: (q @ k.t() + m).softmax(-1) @ v,
        "matmul(softmax(add(matmul(q, transpose(k; dim1=1, dim2=2)), m); dim=3), v)",
        because="is repeated to [2, 3, 5]",
    ),
    Example(
        ((2, 3, 1, 4), (2, 3, 1, 4), (2, 3, 7, 4), (1,)),
        lambda q, k, v, m: (q @ k.t() + m.broadcast_as((2, 3, 5, 7))).softmax(-1) @ v,
        "matmul(softmax(add(matmul(q, transpose(k; dim1=2, dim2=3)), broadcast_as(m; shape=(2, 3, 5, 7))); dim=3), v)",
        because="q [2, 3, 1, 4] is repeated to [2, 3, 5]",
    ),
    Example(
        ((2, 3, 5, 4), (2, 3, 1, 4), (2, 3, 7, 4), (1,)),
        lambda q, k, v, m: (q @ k.t() + m.broadcast_as((2, 3, 5, 7))).softmax(-1) @ v,
        "matmul(softmax(add(matmul(q, transpose(k; dim1=2, dim2=3)), broadcast_as(m; shape=(2, 3, 5, 7))); dim=3), v)",
        because="k [2, 3, 1, 4] is repeated for v [2, 3, 7, 4]",
    ),
    Example(
        (*_FOUR, (2, 3, 5, 7), (5, 7)),
        lambda q, k, v, fill, m: m.broadcast_as((2, 3, 5, 7)).where_cond(fill, q @ k.t()).softmax(-1) @ v,
        "matmul(softmax(where_cond(broadcast_as(m; shape=(2, 3, 5, 7)), fill, matmul(q, "
        "transpose(k; dim1=2, dim2=3))); dim=3), v)",
        ids=((4, 2),),
        because="hidden scores are filled from [2, 3, 5, 7], not with one number",
    ),
)

PASS = Pass("attention", RULES, examples=EXAMPLES)

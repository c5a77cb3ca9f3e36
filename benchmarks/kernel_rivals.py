"""MLX's own ways to compute what our kernels compute: compositions of its operations, and ``mx.fast`` where it is.

Each takes the inputs of a case and gives its result, or a tuple of results. They are written as well as MLX allows:
products through rank r, ``mx.addmm``, softmax in float32, reused masks. ``kernels.py`` also times each under
``mx.compile``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import mlx.core as mx

SCALE = 2.0
EPS = 1e-5
BASE = 10000.0


def lora_plain(x: mx.array, a: mx.array, b: mx.array) -> mx.array:
    """As mlx-lm's layer spells it: the scale last."""
    return ((x @ a) @ b) * SCALE


def lora_at_rank(x: mx.array, a: mx.array, b: mx.array) -> mx.array:
    """The scale on the few numbers of the rank."""
    return ((x @ a) * SCALE) @ b


def add_lora_plain(base: mx.array, x: mx.array, a: mx.array, b: mx.array) -> mx.array:
    """As mlx-lm's layer spells it: four launches."""
    return base + ((x @ a) @ b) * SCALE


def add_lora_addmm(base: mx.array, x: mx.array, a: mx.array, b: mx.array) -> mx.array:
    """Two launches, the best that MLX has."""
    return mx.addmm(base, x @ a, b, alpha=SCALE)


def grouped_lora(ranks: Sequence[int], owners: Sequence[int]) -> dict[str, Callable[..., mx.array]]:
    """Rows of several adapters, row i of adapter ``owners[i]``, sorted so that each way is at its best.

    They take base, x, ids, the factors below each other, and the same ones stacked and filled up to the largest rank.
    """
    starts = [0, *accumulate(ranks)]
    owner_of_column = mx.array([i for i, rank in enumerate(ranks) for _ in range(rank)])

    def gathered(
        base: mx.array, x: mx.array, ids: mx.array, a: mx.array, b: mx.array, wide_a: mx.array, wide_b: mx.array
    ) -> mx.array:
        at_rank = mx.gather_mm(x[:, None], wide_a, rhs_indices=ids, sorted_indices=True)
        return base + mx.gather_mm(at_rank * SCALE, wide_b, rhs_indices=ids, sorted_indices=True)[:, 0]

    def masked(base: mx.array, x: mx.array, ids: mx.array, a: mx.array, b: mx.array, *wide: mx.array) -> mx.array:
        at_rank = mx.where(ids[:, None] == owner_of_column, x @ a.T, mx.array(0, x.dtype))
        return mx.addmm(base, at_rank, b, alpha=SCALE)

    def one_by_one(base: mx.array, x: mx.array, ids: mx.array, a: mx.array, b: mx.array, *wide: mx.array) -> mx.array:
        parts = []
        for i in dict.fromkeys(owners):
            first = owners.index(i)
            rows = slice(first, first + owners.count(i))
            factors = slice(starts[i], starts[i + 1])
            parts.append(mx.addmm(base[rows], x[rows] @ a[factors].T, b[factors], alpha=SCALE))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    return {"gather_mm": gathered, "all, masked": masked, "one by one": one_by_one}


def softmax(x: mx.array) -> mx.array:
    """In float32, as ours: of float16, ``precise=False`` sums in float16."""
    return mx.softmax(x, axis=-1, precise=True)


def masked_softmax(scale: float) -> Callable[[mx.array, mx.array], mx.array]:
    """``softmax(scale · x + mask)``; a causal mask is given like any other, made before."""

    def masked(x: mx.array, mask: mx.array) -> mx.array:
        return mx.softmax(x * scale + mask, axis=-1, precise=True)

    return masked


def log_softmax(x: mx.array) -> mx.array:
    """As ``mlx.nn`` has it."""
    return x - mx.logsumexp(x, axis=-1, keepdims=True)


def rms_norm(x: mx.array, weight: mx.array) -> mx.array:
    """MLX's fused one."""
    return mx.fast.rms_norm(x, weight, EPS)


def rms_norm_plain(x: mx.array, weight: mx.array) -> mx.array:
    """Spelled out, in float32."""
    wide = x.astype(mx.float32)
    return (wide * mx.rsqrt(mx.mean(mx.square(wide), axis=-1, keepdims=True) + EPS)).astype(x.dtype) * weight


def layer_norm(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """MLX's fused one."""
    return mx.fast.layer_norm(x, weight, bias, EPS)


def layer_norm_plain(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """Spelled out, in float32."""
    wide = x.astype(mx.float32)
    centred = wide - mx.mean(wide, axis=-1, keepdims=True)
    inverse = mx.rsqrt(mx.mean(mx.square(centred), axis=-1, keepdims=True) + EPS)
    return (centred * inverse).astype(x.dtype) * weight + bias


def residual(norm: Callable[..., mx.array]) -> Callable[..., tuple[mx.array, mx.array]]:
    """The sum with a residual and its norm, both results, as a transformer block needs them."""

    def added(x: mx.array, beside: mx.array, *vectors: mx.array) -> tuple[mx.array, mx.array]:
        total = x + beside
        return total, norm(total, *vectors)

    return added


def rope(interleaved: bool) -> Callable[..., mx.array]:
    """MLX's fused one, which computes the cosines and sines itself."""

    def turned(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        return mx.fast.rope(x, x.shape[-1], traditional=interleaved, base=BASE, scale=1.0, offset=0)

    return turned


def rope_plain(interleaved: bool) -> Callable[..., mx.array]:
    """Spelled out, by halves or by neighbours."""

    def turned(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        if interleaved:
            a, b = x[..., ::2], x[..., 1::2]
            return mx.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)
        a, b = mx.split(x, 2, axis=-1)
        return mx.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    return turned


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """As ``mlx.nn`` spells it."""
    return gate * mx.sigmoid(gate) * up


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """MLX's fused one."""
    return mx.fast.cross_entropy(logits, targets)


def cross_entropy_plain(logits: mx.array, targets: mx.array) -> mx.array:
    """``logsumexp - logit of the target``, in float32."""
    wide = logits.astype(mx.float32)
    return mx.logsumexp(wide, axis=-1) - mx.take_along_axis(wide, targets[..., None], axis=-1)[..., 0]


def head_cross_entropy(loss: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """All logits first, then their loss."""

    def of_hidden(hidden: mx.array, weight: mx.array, targets: mx.array) -> mx.array:
        return loss(hidden @ weight.T, targets)

    return of_hidden


def attention(scale: float, mask: str | None) -> Callable[..., mx.array]:
    """MLX's fused one."""

    def attended(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

    return attended


def tupled(results: mx.array | Sequence[mx.array]) -> tuple[mx.array, ...]:
    """One result as a tuple of it."""
    return (results,) if isinstance(results, mx.array) else tuple(results)

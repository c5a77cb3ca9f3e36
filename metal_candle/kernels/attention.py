"""Scaled dot-product attention with grouped heads."""

from __future__ import annotations

from typing import Union

import mlx.core as mx

from ..error import ShapeMismatchBinaryOpError
from . import double
from .kernel import Kernel, on_cpu
from .rms_norm import row_sum
from .softmax import causal_mask, exp_rows, masked, summed_to
from .variant import Gradients, Outputs, Variant, differentiated_by_mlx, is_half, through_float32

Mask = Union[mx.array, str, None]

# Queries of a block. With a causal mask no block is multiplied with the keys to its right: with 64 of 512
# queries, 44 % fewer products and exponentials. Measured forward and backward, 9 heads of 64: 12, 18 ms for 4 x 128
# tokens in blocks of 64, 128; 32, 40, 71 ms for 1 x 512 in blocks of 64, 128, 512.
BLOCK = 64
# Without one a block only has to stay in the cache, here as 1.2 MB of scores: forward, against 64 queries, 0.80 times
# for 1 x 128 tokens in one block and 0.71 for 1 x 256 in two.
SCORES = 300_000
# So many are also the most of a block of all rows of a batch; of more, some rows at a time. Against all at once,
# forward and with gradients: 12 heads of 32, no mask, 0.6 and 0.5 times for 32 x 32 tokens, 0.37 and 0.53 for 32 x 128;
# 9 heads of 64, causal, 0.5 and 0.66 for 16 x 96, 0.57 and 0.69 for 8 x 128.
# Below this many scores, as when decoding, MLX's softmax costs less than the calls that replace it. Measured for
# one query of 9 heads: 40 and 190 us with 64 keys, 217 and 282 with 512, 890 and 620 with 2048.
FEW = 8192
_FEW = f"fewer than {FEW} scores on the CPU"
# The exponentials are saved for the backward pass up to this many, else computed again: 64 MiB.
SAVED = 16 * 2**20


def _reference(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Mask = None) -> mx.array:
    """``softmax(scale · q · kᵀ + mask) · v``: q ``(b, h, t, d)``, k ``(b, kv, s, d)``, v ``(b, kv, s, dv)``.

    h is a multiple of kv, the result is ``(b, h, t, dv)``. ``mask`` is added, or a boolean one keeps where it is true,
    broadcast to ``(b, h, t, s)``; ``"causal"`` is aligned bottom-right, so that the last query sees every key. A query
    that sees no key gives NaN, as softmax does. Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
    """
    group = q.shape[1] // k.shape[1]
    keys, values = (mx.repeat(x, group, axis=1) for x in (k, v))
    scores = masked((q * scale) @ mx.swapaxes(keys, -1, -2), mask)
    # MLX takes no maximum of nothing; without keys the sum is empty.
    return (double.softmax(scores) if scores.size else scores) @ values


def _fast(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Mask = None) -> mx.array:
    if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
        mask = mask.astype(q.dtype)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def _grouped(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Mask = None) -> mx.array:
    """The definition without repeating k and v for the heads that share them."""
    b, h, t, _ = q.shape
    if t == 1 and isinstance(mask, str):
        mask = None
    kv, s = k.shape[1:3]
    if kv == h:
        return double.softmax(masked((q * scale) @ mx.swapaxes(k, -1, -2), mask)) @ v
    scores = (_folded(q, kv) * scale) @ mx.swapaxes(k, -1, -2)
    if mask is not None:
        # The softmax is over the last dim, which they share.
        scores = masked(scores.reshape(b, h, t, s), mask).reshape(scores.shape)
    return (double.softmax(scores) @ v).reshape(b, h, t, v.shape[-1])


def _blocks(q: mx.array, s: int, mask: Mask) -> list[tuple[int, int, int]]:
    """Queries from, to, and how many keys they see."""
    b, h, t, _ = q.shape
    rows = BLOCK
    while not isinstance(mask, str) and rows < t and 2 * rows * b * h * s <= SCORES:
        rows *= 2
    ends = [(start, min(start + rows, t)) for start in range(0, t, rows)]
    return [(start, end, s - t + end if isinstance(mask, str) else s) for start, end in ends]


def _folded(x: mx.array, kv: int) -> mx.array:
    """``(b, h, t, d)`` as ``(b, kv, h/kv·t, d)``: heads that share keys as rows of one product."""
    b, h, t, d = x.shape
    return x if kv == h else x.reshape(b, kv, h // kv * t, d)


def _mask_of(mask: Mask, shape: tuple[int, ...], block: tuple[int, int, int]) -> Mask:
    """The mask's part for a block, broadcast to ``(b, h, t, keys)``."""
    start, stop, keys = block
    if mask is None:
        return None
    if isinstance(mask, str):
        # A single query is the last of those keys.
        return None if stop - start == 1 else causal_mask(stop - start, keys, mx.float32)
    whole = mx.broadcast_to(mask, shape)
    return whole[:, :, start:stop]


def _powers(q: mx.array, k: mx.array, scale: float, mask: Mask, block: tuple[int, int, int]) -> mx.array:
    """``exp(scores - maximum)`` ``(b, kv, rows, keys)`` of a block of queries."""
    start, stop, keys = block
    b, h, t, _ = q.shape
    kv = k.shape[1]
    rows = _folded(q[:, :, start:stop] if (start, stop) != (0, t) else q, kv)
    scores = (rows * scale) @ mx.swapaxes(k[:, :, :keys], -1, -2)
    part = _mask_of(mask, (b, h, t, k.shape[2]), block)
    if part is not None:
        apart = scores.reshape(b, h, stop - start, keys)
        scores = masked(apart, part, by_mlx=False).reshape(scores.shape)
    return exp_rows(scores)[0]


def _parts(q: mx.array, s: int, mask: Mask) -> list[slice]:
    """The rows of the batch that are computed together."""
    b, h, t, _ = q.shape
    block = min(t, BLOCK) * s
    if isinstance(mask, str):
        block = max((stop - start) * keys for start, stop, keys in _blocks(q, s, mask))
    most = max(SCORES // (h * block), 1)
    size = -(-b // -(-b // most))
    return [slice(start, start + size) for start in range(0, b, size)]


def _rows_of(mask: Mask, rows: slice) -> Mask:
    """The mask's part for some rows of a batch."""
    return mask[rows] if isinstance(mask, mx.array) and mask.ndim == 4 and mask.shape[0] > 1 else mask


def _forward(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Mask = None) -> Outputs:
    parts = _parts(q, k.shape[2], mask)
    if len(parts) == 1:
        result, *kept = _forward_of_part(q, k, v, scale, mask)
    else:
        results: list[mx.array] = []
        kept = []
        for rows in parts:
            some = q[rows]
            if results:
                some = mx.depends([some], results[-1:])[0]
            found, *saved = _forward_of_part(some, k[rows], v[rows], scale, _rows_of(mask, rows))
            results.append(found)
            kept += saved
        result = mx.concatenate(results)
    return (result, *kept) if sum(x.size for x in kept) <= SAVED else (result,)


def _forward_of_part(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Mask) -> Outputs:
    b, h, _, _ = q.shape
    s = k.shape[2]
    results: list[mx.array] = []
    saved: list[mx.array] = []
    for block in _blocks(q, s, mask):
        start, stop, keys = block
        if results:
            q = mx.depends([q], results[-1:])[0]
        powers = _powers(q, k, scale, mask, block)
        inverse = 1 / row_sum(powers)
        product = (powers @ v[:, :, :keys]) * inverse
        results.append(product.reshape(b, h, stop - start, v.shape[-1]))
        saved += [powers, inverse]
    return (results[0] if len(results) == 1 else mx.concatenate(results, axis=2), *saved)


def _vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    scale: float,
    mask: Mask = None,
) -> Gradients:
    s = inputs[1].shape[2]
    parts = _parts(inputs[0], s, mask)
    if len(parts) == 1:
        return _vjp_of_part(cotangent, inputs, outputs, needs, scale, mask)
    result, *saved = outputs
    found: list[Gradients] = []
    for rows in parts:
        some = [x[rows] for x in (cotangent, *inputs)]
        if found:
            # Else MLX may compute each operation for all parts first.
            some = mx.depends(some, [x for x in found[-1] if x is not None])
        count = 2 * len(_blocks(some[1], s, mask)) if saved else 0
        kept, saved = saved[:count], saved[count:]
        of_part = (result[rows], *kept)
        found.append(_vjp_of_part(some[0], tuple(some[1:]), of_part, needs, scale, _rows_of(mask, rows)))
    return tuple(_joined(column, i == 3 and _rows_of(mask, parts[0]) is mask) for i, column in enumerate(zip(*found)))


def _joined(gradients: Gradients, shared: bool) -> mx.array | None:
    """Those of the parts of a batch: one behind the other, or summed for what the parts share."""
    there = [x for x in gradients if x is not None]
    if not there or not shared:
        return mx.concatenate(there) if there else None
    total = there[0]
    for each in there[1:]:
        total = total + each
    return total


def _vjp_of_part(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    scale: float,
    mask: Mask,
) -> Gradients:
    q, k, v = inputs
    b, h, t, d = q.shape
    kv, s = k.shape[1:3]
    result, *saved = outputs
    of_q: list[mx.array] = []
    of_scores: list[mx.array] = []
    of_k: mx.array | None = None
    of_v: mx.array | None = None
    # From the last block on: it is the one that sees all keys.
    for index, block in reversed(list(enumerate(_blocks(q, s, mask)))):
        start, stop, keys = block
        whole = (start, stop) == (0, t)
        if of_q:
            # Else MLX may keep every block's scores until it comes to the sums for k and v.
            q = mx.depends([q], [x for x in (of_q[-1], of_k, of_v) if x is not None])[0]
        if saved:
            powers, inverse = saved[2 * index : 2 * index + 2]
        else:
            powers = _powers(q, k, scale, mask, block)
            inverse = 1 / row_sum(powers)
        rows, upstream, forward = (_folded(x if whole else x[:, :, start:stop], kv) for x in (q, cotangent, result))
        # With p = powers·inverse: dS = p·(dO·vᵀ - Σ dO·O); the inverse is put on dO, which is narrower.
        upstream = upstream * inverse
        inner = row_sum(upstream * forward)
        through = powers * (upstream @ mx.swapaxes(v[:, :, :keys], -1, -2) - inner)
        seen = _mask_of(mask, (b, h, t, s), block) if isinstance(mask, mx.array) else None
        if isinstance(seen, mx.array) and seen.dtype == mx.bool_:
            # What is hidden passes nothing on, not even the NaN of a query that sees no key.
            apart = through.reshape(b, h, stop - start, keys)
            through = mx.where(seen, apart, mx.array(0, through.dtype)).reshape(through.shape)
        of_q.append(((through @ k[:, :, :keys]) * scale).reshape(b, h, stop - start, d))
        if needs[1]:
            of_k = _accumulate(of_k, mx.swapaxes(through, -1, -2) @ (rows * scale))
        if needs[2]:
            of_v = _accumulate(of_v, mx.swapaxes(powers, -1, -2) @ upstream)
        if len(needs) > 3 and needs[3]:
            of_scores.append(through.reshape(b, h, stop - start, keys))
    gradient_q = of_q[0] if len(of_q) == 1 else mx.concatenate(of_q[::-1], axis=2)
    gradients: list[mx.array | None] = [gradient_q if needs[0] else None, of_k, of_v]
    if len(needs) > 3:
        of_mask = None
        if needs[3] and isinstance(mask, mx.array):
            of_mask = summed_to(mx.concatenate(of_scores[::-1], axis=2), mask.shape).astype(mask.dtype)
        gradients.append(of_mask)
    return tuple(gradients)


def _accumulate(total: mx.array | None, part: mx.array) -> mx.array:
    """``total`` with ``part`` added to its first keys."""
    if total is None:
        return part
    keys = part.shape[2]
    if keys == total.shape[2]:
        return total + part
    return mx.concatenate([total[:, :, :keys] + part, total[:, :, keys:]], axis=2)


def _with_gradient_of_mask(fast: Variant) -> Variant:
    """``fast``, but for the gradient of a mask, which not every fused backward pass of MLX has."""

    def vjp(
        cotangent: mx.array,
        inputs: tuple[mx.array, ...],
        outputs: Outputs,
        needs: tuple[bool, ...],
        scale: float,
        mask: Mask = None,
    ) -> Gradients:
        variant = _GROUPED if len(needs) > 3 and needs[3] else fast
        return variant.vjp(cotangent, inputs, outputs, needs, scale, mask)

    return Variant(fast.name, fast.forward, vjp)


_BLOCKS = Variant("blocks of queries", _forward, _vjp)
_BLOCKS_HALF = through_float32(_BLOCKS)
_GROUPED = differentiated_by_mlx("grouped", _grouped)
_GROUPED_HALF = through_float32(_GROUPED)
_FAST = _with_gradient_of_mask(differentiated_by_mlx("mx.fast.scaled_dot_product_attention", _fast))


def _select(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Mask = None) -> tuple[Variant | None, str]:
    takes = "q (b, h, t, d), k (b, kv, s, d) and v (b, kv, s, dv) with h a multiple of kv"
    of_q, of_k, of_v = q.shape, k.shape, v.shape
    if len(of_q) != 4 or len(of_k) != 4 or of_q[0] != of_k[0] or of_q[3] != of_k[3]:
        raise ShapeMismatchBinaryOpError("attention", of_q, of_k, takes)
    (b, h, t, _), (_, kv, s, _) = of_q, of_k
    if not kv or h % kv:
        raise ShapeMismatchBinaryOpError("attention", of_q, of_k, takes)
    if of_k[:3] != of_v[:3]:
        raise ShapeMismatchBinaryOpError("attention", of_k, of_v, takes)
    if 0 in of_q or 0 in of_k or 0 in of_v:
        return None, "no elements"
    if isinstance(mask, str) and t > s:
        return None, "queries before the first key"
    if not on_cpu():
        return _FAST, "GPU"
    # With a boolean mask, as of packed rows, what MLX differentiates is a function that mx.export_function refuses.
    exportable = t == 1 or not isinstance(mask, mx.array) or mask.dtype != mx.bool_
    few = b * h * t * s < FEW and exportable
    if q.dtype == mx.float32:
        return (_GROUPED, _FEW) if few else (_BLOCKS, "CPU")
    if not is_half(q):
        return None, f"{q.dtype} on the CPU"
    return (_GROUPED_HALF, _FEW) if few else (_BLOCKS_HALF, "CPU")


attention = Kernel("attention", _reference, _select, arity=3)

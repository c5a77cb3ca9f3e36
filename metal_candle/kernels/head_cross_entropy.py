"""Cross entropy from the hidden states that a vocabulary head would turn into logits.

The logits of all rows never exist at once. On the CPU they are made a block of rows and words at a time, small enough
for the cache. A GPU wants large products: there a chunk is some rows with all words, so that a row's softmax is there
at once and its loss and gradient are ``mx.fast.cross_entropy``'s, two launches, which turn the logits into their
gradient in place: three passes over them. A kernel of ours could do no better (Hsu et al. 2024, the Liger kernels,
https://arxiv.org/abs/2410.10989). The products there stay in the hidden states' dtype, as they are where the head is
spelled out; everything behind them is float32.
"""

from __future__ import annotations

import math

import mlx.core as mx

from .cross_entropy import cross_entropy, of_logits
from .elementary import exp_up_to_zero
from .kernel import Kernel, on_cpu
from .rms_norm import row_sum
from .softmax import row_max
from .targets import or_nan, or_zero, places
from .variant import Gradients, Outputs, Variant, is_half

# Rows and words of a block of logits: 2 MiB of float32 on the CPU, which stays in the last cache.
ROWS = 128
WORDS = 4096
# Of a chunk's logits on a GPU; their gradient takes as much where it is not written in their place, and MLX has some
# chunks under way at once. Of 49,152 words in bfloat16 that is 1,344 rows, of 151,936 words 384: enough for products
# that are bound by arithmetic, and fewer would not be.
CHUNK_BYTES = 128 * 2**20
# Rows of a chunk are a multiple of this, a tile of matrix products.
TILE = 64


def _reference(
    hidden: mx.array, weight: mx.array, targets: mx.array, label_smoothing: float = 0.0, gradient: bool = True
) -> mx.array:
    """Loss of each row, ``-log_softmax(hidden · weightᵀ)[target]``, in float32, of float64 in float64.

    hidden ``(n, h)``, weight ``(v, h)``, integer targets ``(n,)``, each below v. With label smoothing ε the target
    distribution is ``(1 - ε)·onehot + ε/v``, as in PyTorch. A target that is none of 0..v - 1 gives NaN, and its row
    adds nothing to any gradient.
    """
    return of_logits(_wide(hidden) @ _wide(weight).T, targets, label_smoothing)


def _wide(x: mx.array) -> mx.array:
    return x.astype(mx.float32) if is_half(x) else x


def _rows_forward(hidden: mx.array, weight: mx.array, gradient: bool) -> tuple[mx.array, mx.array | None]:
    """logsumexp ``(n, 1)`` of the logits of some rows and, with ``gradient``, the mean word ``softmax · weight``.

    A block of words at a time, with a running maximum (Milakov and Gimelshein 2018,
    https://arxiv.org/abs/1805.02867); sums of earlier blocks are rescaled when the maximum grows.
    """
    block = _wide(weight[:WORDS])
    logits = hidden @ block.T
    top = row_max(logits)
    powers = exp_up_to_zero(logits - top)
    total = row_sum(powers)
    mean = powers @ block if gradient else None
    for start in range(WORDS, weight.shape[0], WORDS):
        block = _wide(weight[start : start + WORDS])
        # Without this MLX may make all blocks of logits first, that is, all logits.
        hidden = mx.depends([hidden], [total if mean is None else mean])[0]
        logits = hidden @ block.T
        highest = mx.maximum(top, row_max(logits))
        rescale = mx.exp(top - highest)
        powers = exp_up_to_zero(logits - highest)
        total = total * rescale + row_sum(powers)
        mean = None if mean is None else mx.addmm(mean * rescale, powers, block)
        top = highest
    return top + mx.log(total), None if mean is None else mean / total


def by_words(
    hidden: mx.array,
    weight: mx.array,
    targets: mx.array,
    label_smoothing: float = 0.0,
    gradient: bool = True,
    rows: int = ROWS,
) -> Outputs:
    wide = _wide(hidden)
    at, known = places(targets, weight.shape[0])
    middle = _wide(weight).mean(axis=0) if label_smoothing else None
    losses: list[mx.array] = []
    gradients: list[mx.array] = []
    tops: list[mx.array] = []
    for start in range(0, hidden.shape[0], rows):
        part = wide[start : start + rows]
        if tops:
            part = mx.depends([part], [gradients[-1] if gradient else tops[-1]])[0]
        word = _wide(weight[at[start : start + rows]])
        if middle is not None:
            word = word * (1 - label_smoothing) + middle * label_smoothing
        top, mean = _rows_forward(part, weight, gradient)
        losses.append((top - row_sum(part * word))[:, 0])
        tops.append(top)
        if mean is not None:
            gradients.append(mean - word)
    loss = or_nan(mx.concatenate(losses), known)
    return (loss, mx.concatenate(gradients), mx.concatenate(tops)) if gradient else (loss,)


def _vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    label_smoothing: float = 0.0,
    gradient: bool = True,
) -> Gradients:
    hidden, weight, targets = inputs
    if len(outputs) < 2:
        outputs = by_words(hidden, weight, targets, label_smoothing)
    at, known = places(targets, weight.shape[0])
    upstream = or_zero(cotangent, known)[:, None]
    of_hidden = (outputs[1] * upstream).astype(hidden.dtype) if needs[0] else None
    of_weight = None
    if needs[1]:
        top = outputs[2] if len(outputs) > 2 else by_words(hidden, weight, targets, label_smoothing)[2]
        of_weight = _of_weight(upstream, hidden, weight, at, top, label_smoothing)
    return (of_hidden, of_weight, None)[: len(needs)]


def _of_weight(
    upstream: mx.array,
    hidden: mx.array,
    weight: mx.array,
    targets: mx.array,
    top: mx.array,
    label_smoothing: float,
) -> mx.array:
    """``(softmax - target distribution)ᵀ · (cotangent · hidden)``, a block of words at a time."""
    wide = _wide(hidden)
    scaled = wide * upstream
    even = scaled.sum(axis=0) * (label_smoothing / weight.shape[0])
    parts: list[mx.array] = []
    for start in range(0, weight.shape[0], WORDS):
        rows = mx.depends([wide], parts[-1:])[0] if parts else wide
        logits = rows @ _wide(weight[start : start + WORDS]).T
        parts.append(exp_up_to_zero(logits - top).T @ scaled)
    total = mx.concatenate(parts).at[targets].add(scaled * (label_smoothing - 1))
    return (total - even if label_smoothing else total).astype(weight.dtype)


def chunk_rows(rows: int, words: int, itemsize: int) -> int:
    """Rows of a chunk on a GPU: equal shares of all ``rows``, the logits of each within ``CHUNK_BYTES``."""
    most = max(CHUNK_BYTES // (words * itemsize) // TILE * TILE, TILE)
    share = math.ceil(rows / math.ceil(rows / most))
    return min(math.ceil(share / TILE) * TILE, most)


def _alike(hidden: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
    return (hidden, weight) if hidden.dtype == weight.dtype else (_wide(hidden), _wide(weight))


def loss_and_gradient(logits: mx.array, targets: mx.array, label_smoothing: float) -> tuple[mx.array, mx.array]:
    """The losses of rows of logits and the gradient of the sum of those that are numbers."""
    if label_smoothing:
        outputs = cross_entropy.forward(logits, targets, label_smoothing)
        ones = mx.ones(targets.shape, mx.float32)
        found = cross_entropy.vjp(ones, (logits, targets), outputs, (True, False), label_smoothing)[0]
        assert found is not None
        return outputs[0], found
    # Both halves at once: MLX's gradient takes what its forward launch found.
    at, known = places(targets, logits.shape[-1])
    losses, gradients = mx.vjp(lambda x: mx.fast.cross_entropy(x, at), [logits], [known.astype(mx.float32)])
    return or_nan(losses[0], known), gradients[0]


def _chunks_forward(
    hidden: mx.array, weight: mx.array, targets: mx.array, label_smoothing: float = 0.0, gradient: bool = True
) -> Outputs:
    hidden, weight = _alike(hidden, weight)
    losses: list[mx.array] = []
    gradients: list[mx.array] = []
    step = chunk_rows(hidden.shape[0], weight.shape[0], hidden.itemsize)
    for start in range(0, hidden.shape[0], step):
        rows, wanted = hidden[start : start + step], targets[start : start + step]
        if losses:
            # Without this MLX may make all chunks of logits first, that is, all logits.
            rows = mx.depends([rows], [gradients[-1] if gradient else losses[-1]])[0]
        logits = rows @ weight.T
        if gradient:
            loss, of_chunk = loss_and_gradient(logits, wanted, label_smoothing)
            gradients.append(of_chunk @ weight)
        else:
            loss = cross_entropy.forward(logits, wanted, label_smoothing)[0]
        losses.append(loss)
    if not gradient:
        return (mx.concatenate(losses),)
    return mx.concatenate(losses), mx.concatenate(gradients)


def _chunks_vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    label_smoothing: float = 0.0,
    gradient: bool = True,
) -> Gradients:
    hidden, weight, targets = inputs
    of_hidden = of_weight = None
    if needs[0]:
        saved = outputs[1] if len(outputs) == 2 else _chunks_forward(hidden, weight, targets, label_smoothing)[1]
        of_hidden = (saved * cotangent[:, None]).astype(hidden.dtype)
    if needs[1]:
        of_weight = _chunks_of_weight(cotangent, hidden, weight, targets, label_smoothing)
    return (of_hidden, of_weight, None)[: len(needs)]


def _chunks_of_weight(
    cotangent: mx.array, hidden: mx.array, weight: mx.array, targets: mx.array, label_smoothing: float
) -> mx.array:
    """The weight's gradient, in float32 over the chunks. The logits are made again: saved, all of them would exist."""
    dtype = weight.dtype
    hidden, weight = _alike(hidden, weight)
    total: mx.array | None = None
    step = chunk_rows(hidden.shape[0], weight.shape[0], hidden.itemsize)
    for start in range(0, hidden.shape[0], step):
        rows, wanted = hidden[start : start + step], targets[start : start + step]
        if total is not None:
            rows = mx.depends([rows], [total])[0]
        _, of_chunk = loss_and_gradient(rows @ weight.T, wanted, label_smoothing)
        scaled = (rows * cotangent[start : start + step, None]).astype(hidden.dtype)
        part = (of_chunk.T @ scaled).astype(mx.float32)
        total = part if total is None else total + part
    assert total is not None
    return total.astype(dtype)


_BLOCKS = Variant("blocks of words", by_words, _vjp)
_CHUNKS = Variant("chunks of rows", _chunks_forward, _chunks_vjp)


def _select(
    hidden: mx.array, weight: mx.array, targets: mx.array, label_smoothing: float = 0.0, gradient: bool = True
) -> tuple[Variant | None, str]:
    if hidden.shape[0] == 0:
        return None, "no rows"
    if hidden.dtype == mx.float64:
        return None, "float64"
    if not on_cpu():
        return _CHUNKS, f"GPU, {CHUNK_BYTES // 2**20} MiB of logits at once"
    return _BLOCKS, "the logits never exist at once"


head_cross_entropy = Kernel("head_cross_entropy", _reference, _select, arity=3)

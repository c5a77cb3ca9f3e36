"""The fewest bytes a kernel must move: each input read once, each result written once, nothing in between.

``item`` is the bytes of one element. A ``…_gradient`` is what the gradient moves beside the result: cotangents and what
it reads again once, each gradient written once.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

INDEX = 4
"""Bytes of a target or of a row's adapter: int32 and uint32."""
LOSS = 4
"""Bytes of a row's loss, which is float32 for every dtype of the logits."""


def lora(tokens: int, width: int, out: int, rank: int, item: int) -> int:
    """``scale · (x · A) · B``: x, both factors, the result."""
    return (tokens * width + (width + out) * rank + tokens * out) * item


def add_lora(tokens: int, width: int, out: int, rank: int, item: int) -> int:
    """``base + scale · (x · A) · B``: the base too."""
    return lora(tokens, width, out, rank, item) + tokens * out * item


def lora_gradient(tokens: int, width: int, out: int, rank: int, item: int) -> int:
    """The cotangent, x and the factors again; gradients of x and the factors. That of a base is the cotangent."""
    return (tokens * out + 2 * tokens * width + 2 * (width + out) * rank) * item


def grouped_lora(tokens: int, width: int, out: int, ranks: list[int], item: int) -> int:
    """``base + scale · (x · A) · B`` with the factors of every adapter in use, whose ranks are ``ranks``, once, and
    each row's adapter."""
    return (tokens * width + (width + out) * sum(ranks) + 2 * tokens * out) * item + tokens * INDEX


def softmax(rows: int, width: int, item: int) -> int:
    """Softmax or log-softmax: read and written once."""
    return 2 * rows * width * item


def masked_softmax(rows: int, width: int, mask_rows: int, item: int) -> int:
    """With an additive mask of ``mask_rows`` rows, each read once."""
    return softmax(rows, width, item) + mask_rows * width * item


def causal_softmax(heads: int, rows: int, width: int, item: int) -> int:
    """Of each head's ``(rows, width)`` only what the last diagonals let see is read; all is written."""
    seen = rows * width - rows * (rows - 1) // 2
    return heads * (seen + rows * width) * item


def row_gradient(rows: int, width: int, item: int) -> int:
    """Of softmax and of norms with a frozen weight: the cotangent and the result or input again, one gradient."""
    return 3 * rows * width * item


def norm(rows: int, width: int, vectors: int, item: int) -> int:
    """RMS norm with its weight, ``vectors`` 1, layer norm with weight and bias, 2."""
    return (2 * rows * width + vectors * width) * item


def add_norm(rows: int, width: int, vectors: int, item: int) -> int:
    """Residual and norm, both results kept: two inputs read, two results written."""
    return norm(rows, width, vectors, item) + 2 * rows * width * item


def add_norm_gradient(rows: int, width: int, item: int) -> int:
    """Two cotangents and the sum; one gradient, which is that of both inputs."""
    return 4 * rows * width * item


def rope(heads: int, tokens: int, width: int, item: int) -> int:
    """Read and written once, cosines and sines of half the width read once for all heads."""
    return (2 * heads * tokens * width + tokens * width) * item


def rope_gradient(heads: int, tokens: int, width: int, item: int) -> int:
    """The cotangent turned back: as many again."""
    return rope(heads, tokens, width, item)


def swiglu(rows: int, width: int, item: int) -> int:
    """Two inputs, one result."""
    return 3 * rows * width * item


def swiglu_gradient(rows: int, width: int, item: int) -> int:
    """The cotangent and both inputs; two gradients."""
    return 5 * rows * width * item


def cross_entropy(rows: int, width: int, item: int) -> int:
    """Logits and targets read, a loss a row written."""
    return rows * width * item + rows * (INDEX + LOSS)


def cross_entropy_gradient(rows: int, width: int, item: int) -> int:
    """The logits again and the gradient as large; targets, losses and cotangents of the rows."""
    return 2 * rows * width * item + rows * (INDEX + 2 * LOSS)


def head_cross_entropy(rows: int, hidden: int, words: int, item: int) -> int:
    """Hidden states, head and targets read, a loss a row written; logits never exist."""
    return (rows + words) * hidden * item + rows * (INDEX + LOSS)


def head_cross_entropy_gradient(rows: int, hidden: int, words: int, item: int) -> int:
    """Those again with the cotangents, and the gradient of the hidden states; the head is frozen."""
    return (2 * rows + words) * hidden * item + rows * (INDEX + LOSS)


def of_arrays(inputs: Sequence[mx.array], results: Sequence[mx.array]) -> int:
    """Any function of inputs that it needs all of."""
    return sum(each.nbytes for each in (*inputs, *results))


def of_arrays_gradient(inputs: Sequence[mx.array], results: Sequence[mx.array], wrt: Sequence[int]) -> int:
    """The cotangents and the inputs again, and the gradients of the inputs at ``wrt``."""
    return of_arrays(inputs, results) + sum(inputs[i].nbytes for i in wrt)

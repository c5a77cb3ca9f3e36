"""Each row's product with the weight of its own expert, and its gradient.

A weight is one array ``(experts, out, in)``, or in that shape the codes, scales and biases of ``quantized_linear``.
On the CPU each expert's rows are one product with its weight, unpacked for that long; MLX's gathered products take the
rows one by one there, and float32 only. On a GPU, and where the ids have no values yet, they are what is used.
Halves are computed in float32 on the CPU, a quantised weight always.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .kernel import on_cpu
from .quantized_linear import DENSE, GROUP, unpack
from .variant import is_half

Ids = np.ndarray[Any, Any]


def forward(x: mx.array, ids: mx.array, weight: Sequence[mx.array], bits: int) -> mx.array:
    """``x[i] · weight[ids[i]]ᵀ`` in x's dtype: ``(m, in)`` and ids ``(m,)``, all inside, to ``(m, out)``."""
    return _product(x, ids, weight, bits, transpose=True)


def gradient_of_x(cotangent: mx.array, ids: mx.array, weight: Sequence[mx.array], bits: int) -> mx.array:
    """``cotangent[i] · weight[ids[i]]``: ``(m, out)`` to ``(m, in)``."""
    return _product(cotangent, ids, weight, bits, transpose=False)


def gradient_of_weight(cotangent: mx.array, x: mx.array, ids: mx.array, weight: mx.array) -> mx.array:
    """The gradient ``(experts, out, in)`` of a weight that is not quantised, an expert at a time."""
    rows, upstream = _wide(x), _wide(cotangent)
    none, parts = mx.array(0, upstream.dtype), []
    values = _values(ids)
    for expert in range(weight.shape[0]):
        if values is None:
            parts.append(mx.where((ids == expert)[:, None], upstream, none).T @ rows)
            continue
        places = mx.array(np.flatnonzero(values == expert))
        parts.append(upstream[places].T @ rows[places])
    return mx.stack(parts).astype(weight.dtype)


def _product(x: mx.array, ids: mx.array, weight: Sequence[mx.array], bits: int, transpose: bool) -> mx.array:
    values = _values(ids) if on_cpu() else None
    if values is not None:
        rows = _wide(x)

        def matrix(expert: int) -> mx.array:
            whole = unpack([part[expert] for part in weight], bits).astype(rows.dtype)
            return whole.T if transpose else whole

        return _by_expert(rows, values, matrix).astype(x.dtype)
    places = ids.astype(mx.uint32)
    if bits != DENSE:
        codes, scales, biases = (part if n == 0 else part.astype(mx.float32) for n, part in enumerate(weight))
        product = mx.gather_qmm(
            x[:, None].astype(mx.float32),
            codes,
            scales,
            biases,
            rhs_indices=places,
            transpose=transpose,
            group_size=GROUP,
            bits=bits,
        )
        return product[:, 0].astype(x.dtype)
    rows, matrices = (_wide(each) if on_cpu() else each for each in (x, weight[0]))
    if transpose:
        matrices = mx.swapaxes(matrices, 1, 2)
    return mx.gather_mm(rows[:, None], matrices, rhs_indices=places)[:, 0].astype(x.dtype)


def _by_expert(x: mx.array, ids: Ids, matrix: Callable[[int], mx.array]) -> mx.array:
    order = np.argsort(ids, kind="stable")
    is_sorted = bool((order[1:] > order[:-1]).all())
    rows = x if is_sorted else x[mx.array(order)]
    experts, starts = np.unique(ids[order], return_index=True)
    ends = [*starts[1:].tolist(), len(ids)]
    parts = [rows[a:b] @ matrix(e) for e, a, b in zip(experts.tolist(), starts.tolist(), ends)]
    product = parts[0] if len(parts) == 1 else mx.concatenate(parts)
    return product if is_sorted else product[mx.array(np.argsort(order))]


def _values(ids: mx.array) -> Ids | None:
    """The ids' values; ``None`` inside ``mx.compile``, where there are none."""
    try:
        return np.array(ids)
    except ValueError:
        return None


def _wide(x: mx.array) -> mx.array:
    return x.astype(mx.float32) if is_half(x) else x

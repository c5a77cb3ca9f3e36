"""A recorded step computed with NumPy: for one token on the CPU, where MLX's cost per operation dominates.

MLX's CPU back-end hands each operation to a thread, some 20 to 30 microseconds on the two x86-64 cores this was
measured on, and multiplies one row by a matrix with a BLAS's matrix-matrix product, at 6 to 13 GB/s. A step of
SmolLM2-135M is 800 operations and 211 such products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np

from ..dtype import DType
from ..graph.node import GraphNode, topological_order
from ..graph.operation import Operation
from ..graph.operations.fused import Rope, Sdpa, Swiglu
from ..graph.operations.grouped_lora import GroupedLoRA
from ..graph.operations.index import Embedding
from ..graph.operations.linalg import Linear
from ..graph.operations.norm import WeightedRMSNorm
from ..graph.operations.quantized import QuantizedEmbedding, QuantizedLinear
from ..kernels.quantized_linear import AFFINE, DENSE
from .host_products import linear, packed_linear, packed_rows


def _rms_norm(x: Any, weight: Any, eps: float) -> Any:
    if x.size == x.shape[-1]:
        row = x.reshape(-1)
        return x * (weight * np.float32(1.0 / np.sqrt(np.dot(row, row) / row.size + eps)))
    return x * (1.0 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps))) * weight


def _rope(x: Any, cos: Any, sin: Any) -> Any:
    if cos.ndim == 3:  # a position of its own for each row
        cos, sin = cos[:, None], sin[:, None]
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    turned = np.empty_like(x)
    turned[..., :half] = a * cos - b * sin
    turned[..., half:] = a * sin + b * cos
    return turned


def _attention(q: Any, k: Any, v: Any, *rest: Any) -> Any:
    """``Sdpa`` of these inputs; ``rest`` is its mask, if there is one, and its scale and whether it is causal."""
    *masks, scale, causal = rest
    # Queries of one group side by side, so that keys and values are not repeated for each head.
    b, h, t, d = q.shape
    kv, s = k.shape[1:3]
    grouped = q.reshape(b, kv, h // kv * t, d) * np.float32(scale)
    scores = np.matmul(grouped, np.swapaxes(k, -1, -2))
    if causal and t > 1:  # one query, the last position, has nothing later to hide
        masks = [np.tri(t, s, s - t, dtype=np.int8)]
    for mask in masks:
        apart = scores.reshape(b, h, t, s)
        masked = apart + mask if mask.dtype.kind == "f" else np.where(mask != 0, apart, np.float32(-np.inf))
        scores = masked.reshape(scores.shape)
    # Of no keys, the maximum of nothing.
    scores -= scores.max(axis=-1, keepdims=True, initial=-np.inf)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return np.matmul(scores, v).reshape(b, h, t, v.shape[-1])


def _swiglu(gate: Any, up: Any) -> Any:
    return gate / (np.float32(1.0) + np.exp(-gate)) * up


def _grouped_lora(base: Any, x: Any, ids: Any, a: Any, b: Any, ranks: Any, scales: Any) -> Any:
    """All adapters at once, with zeros at rank where a row is another's.

    Where that gives NaN, of an adapter with infinities say, each row by itself: it stays in its rows.
    """
    owner, scale = _columns(ranks, scales)
    own = ids.reshape(*ids.shape, *(1,) * (x.ndim - ids.ndim)) == owner
    result = base + np.where(own, (x @ a.T) * scale, np.float32(0)) @ b
    return result if np.isfinite(result).all() else GroupedLoRA.numpy(base, x, ids, a, b, ranks, scales)


@lru_cache(maxsize=256)
def _columns(ranks: tuple[int, ...], scales: tuple[float, ...]) -> tuple[Any, Any]:
    """For each row of the packed factors its adapter and its scale."""
    return np.repeat(np.arange(len(ranks)), ranks), np.repeat(np.array(scales, np.float32), ranks)


# The step's own operations, for one token; every other one has a NumPy definition in its record, or is refused.
_FUNCTIONS: dict[type[Operation], Callable[..., Any]] = {
    Embedding: lambda table, ids: table[ids],
    GroupedLoRA: _grouped_lora,
    Linear: linear,
    QuantizedEmbedding: packed_rows,
    QuantizedLinear: packed_linear,
    Rope: _rope,
    Sdpa: _attention,
    Swiglu: _swiglu,
    WeightedRMSNorm: _rms_norm,
}


def _function(operation: Operation) -> Callable[..., Any] | None:
    if isinstance(operation, (QuantizedLinear, QuantizedEmbedding)) and (
        operation.mode != AFFINE or operation.bits == DENSE
    ):
        return None
    return _FUNCTIONS.get(type(operation)) or type(operation).numpy


def _held(value: Any) -> Any:
    """A weight where it lies. NumPy has no bfloat16: scales of a quantised one are widened."""
    if isinstance(value, mx.array) and value.dtype == mx.bfloat16:
        value = value.astype(mx.float32)
    return None if value is None else np.array(value, copy=False)


class HostPlan:
    """The NumPy calls that compute ``output`` from ``inputs``, in order. Weights are read where they lie."""

    def __init__(self, output: GraphNode, inputs: Sequence[GraphNode]) -> None:
        given = set(inputs)
        order = topological_order([output], stop=lambda node: node in given or node.value is not None)
        slots = {node: slot for slot, node in enumerate(order)}
        self._table: list[Any] = [_held(node.value) for node in order]
        self._inputs = [slots[node] for node in inputs]
        self._output = slots[output]
        self._steps = []
        for node in order:
            function = _function(node.operation)
            if node.value is None and node not in given and function is not None:
                extra = tuple(getattr(node.operation, item.name) for item in fields(node.operation))
                self._steps.append((function, [slots[source] for source in node.inputs], extra, slots[node]))

    @staticmethod
    def refusal(output: GraphNode) -> str | None:
        """Why a plan does not take it, if it does not: all has to be computed in float32 on the CPU, by operations
        that have a NumPy function."""
        for node in topological_order([output], stop=lambda node: node.value is not None):
            name = type(node.operation).__name__
            if not node.device.is_cpu():
                return f"{name} is on {node.device!r}"
            if node.value is not None or not node.inputs:
                continue
            if node.dtype is not DType.F32:
                return f"{name} is computed in {node.dtype}"
            if _function(node.operation) is None:
                return f"{name} has no NumPy function"
        return None

    def run(self, values: Sequence[Any]) -> Any:
        """The output's array for these values of the inputs."""
        table = self._table
        for slot, value in zip(self._inputs, values):
            table[slot] = value
        # exp(-gate) of a very negative gate is infinite, and the quotient 0. A query that sees no key gives NaN.
        with np.errstate(over="ignore", invalid="ignore"):
            for function, sources, extra, slot in self._steps:
                table[slot] = function(*[table[source] for source in sources], *extra)
        return table[self._output]

"""Rotary position embeddings, by tables of cosines and sines. candle: ``candle_nn::rotary_emb``.

Su et al. 2021, https://arxiv.org/abs/2104.09864: a pair ``(a, b)`` of a head's elements becomes
``(a · cos - b · sin, a · sin + b · cos)``. Row ``i`` of the tables is for position ``i`` of ``xs``: who continues a
sequence narrows them to where it goes on. All functions are differentiable, by ``xs`` and by the tables, and take
tensors of any strides; those with ``slow`` compute the same. (candle's others drop gradients and want contiguous
tensors.)
"""

from __future__ import annotations

from typing import Any, TypeVar

from ..error import ShapeMismatchBinaryOpError
from ..graph.operation import Operation
from ..graph.operations.fused import Rope
from ..graph.operations.rope_interleaved import RopeInterleaved
from ..shape import expect_rank
from ..tensor.arguments import expect_tensor
from ..tensor.base import TensorBase

T = TypeVar("T", bound=Any)


def rope(xs: T, cos: TensorBase, sin: TensorBase) -> T:
    """``xs`` ``(b, h, t, d)`` turned, the first half of d paired with the second.

    cos and sin are ``(T, d/2)`` or, a table for each of the batch, ``(b, T, d/2)``; the first t of T rows count.
    Raises ``ShapeMismatchBinaryOpError`` for an odd d and for tables of other sizes, ``DTypeMismatchError`` where they
    are not of xs' dtype.
    """
    return _turned("rope", Rope(), xs, cos, sin)


def rope_i(xs: T, cos: TensorBase, sin: TensorBase) -> T:
    """As ``rope``, each even element of d paired with the one after it."""
    return _turned("rope_i", RopeInterleaved(), xs, cos, sin)


def rope_thd(xs: T, cos: TensorBase, sin: TensorBase) -> T:
    """As ``rope``, of ``xs`` ``(b, t, h, d)``."""
    expect_tensor("rope_thd", xs, "xs")
    expect_rank(xs.shape, 4, "rope_thd")
    turned: T = _turned("rope_thd", Rope(), xs.transpose(1, 2), cos, sin).transpose(1, 2)
    return turned


def rope_slow(x: T, cos: TensorBase, sin: TensorBase) -> T:
    """``rope`` spelled with ``cat`` and products, for tables ``(T, d/2)`` only."""
    cos, sin = _rows("rope_slow", x, cos, sin, batched=False)
    cos, sin = (type(x).cat([table, table], -1).unsqueeze(0).unsqueeze(0) for table in (cos, sin))
    half = x.dim(-1) // 2
    turned = type(x).cat([x.narrow(-1, half, half).neg(), x.narrow(-1, 0, half)], -1)
    result: T = x.broadcast_mul(cos).add(turned.broadcast_mul(sin))
    return result


def rope_i_slow(x: T, cos: TensorBase, sin: TensorBase) -> T:
    """``rope_i`` spelled with ``cat`` and products, for tables ``(T, d/2)`` only."""
    rows = _rows("rope_i_slow", x, cos, sin, batched=False)
    b, h, t, d = x.dims4()
    of_cos, of_sin = (table.reshape((t, d // 2, 1)) for table in rows)
    pairs = x.reshape((b, h, t, d // 2, 2))
    first, second = pairs.narrow(-1, 0, 1), pairs.narrow(-1, 1, 1)
    y0 = first.broadcast_mul(of_cos).sub(second.broadcast_mul(of_sin))
    y1 = first.broadcast_mul(of_sin).add(second.broadcast_mul(of_cos))
    result: T = type(x).cat([y0, y1], -1).reshape((b, h, t, d))
    return result


def _turned(op: str, operation: Operation, xs: T, cos: TensorBase, sin: TensorBase) -> T:
    cos, sin = _rows(op, xs, cos, sin)
    result: T = xs._record(operation, cos, sin)
    return result


def _rows(op: str, xs: Any, cos: TensorBase, sin: TensorBase, batched: bool = True) -> tuple[Any, Any]:
    """The rows of the tables that the t positions of ``xs`` ``(b, h, t, d)`` take, as tensors of its kind."""
    for name, tensor in (("xs", xs), ("cos", cos), ("sin", sin)):
        expect_tensor(op, tensor, name)
    shape = xs.shape
    expect_rank(shape, 4, op)
    b, _, t, d = shape
    rows = []
    for table in (cos, sin):
        sizes = table.shape
        many = len(sizes) == 3 and sizes[0] == b and batched
        if d % 2 or not (many or len(sizes) == 2) or sizes[-1] != d // 2 or sizes[-2] < t:
            either = ", or (b, T, d/2)" if batched else ""
            takes = f"xs of 4 dims, t and d the last two, d even, and tables (T, d/2) with T >= t{either}"
            raise ShapeMismatchBinaryOpError(op, shape, sizes, takes)
        lifted = xs._lift(table)
        rows.append(lifted if sizes[-2] == t else lifted.narrow(len(sizes) - 2, 0, t))
    return rows[0], rows[1]

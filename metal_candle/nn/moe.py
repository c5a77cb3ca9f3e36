"""Products of a mixture of experts. candle: ``candle_nn::moe``.

A token goes to ``topk`` experts: pair ``token · topk + i`` is its i-th. Pairs come sorted by expert, so that the rows
of an expert lie together: ``sorted_token_ids`` are the pairs, ``experts_ids`` the expert of each. (Pairs in another
order give the same; they only take longer.)
"""

from __future__ import annotations

from typing import Any, TypeVar

from ..dtype import DType, DTypeLike
from ..error import ArgumentTypeError, ArgumentValueError, ShapeMismatchError, UnsupportedDTypeForOpError
from ..error.text import described
from ..graph.node import GraphNode, leaf, record
from ..graph.operations.counts import integer
from ..graph.operations.moe import ExpertLinear
from ..kernels.quantized_linear import DENSE
from ..quantized import GgmlDType, QTensor
from ..shape import expect_rank
from ..tensor.base import TensorBase
from ..tensor.eager import Tensor

T = TypeVar("T", bound=Any)
_GGUF = (GgmlDType.Q8_0, GgmlDType.Q2K, GgmlDType.Q3K, GgmlDType.Q4K, GgmlDType.Q5K, GgmlDType.Q6K)


def moe_gemm(
    input: T,
    weights: TensorBase,
    topk_weights: TensorBase | None,
    sorted_token_ids: TensorBase,
    experts_ids: TensorBase,
    topk: int,
    is_prefill: bool,
) -> T:
    """For each pair p the row ``x · W[expert of p]ᵀ``: weights ``(experts, n, k)``, ids ``(pairs,)``, to ``(pairs, n)``
    in the pairs' own order.

    Without ``topk_weights`` x is the row of p's token, ``input[p / topk]`` of ``(tokens, k)``, and there are
    ``tokens · topk`` pairs. With them it is p's own, ``input[p]`` of ``(pairs, k)``, and the result is multiplied by
    ``topk_weights[p]``, floats of as many elements; the sum over a token's pairs is the caller's. A pair that
    ``sorted_token_ids`` does not name gives zeros. ``is_prefill`` chooses between candle's kernels, and changes nothing
    here.

    For floats of any dtype on any device, with gradients of input, weights and ``topk_weights``; candle's is for F16
    and BF16 on CUDA, and has none. Raises ``InvalidIndexError`` for ids outside, ``ShapeMismatchError``,
    ``ShapeMismatchBinaryOpError`` and kinds of ``TypeError`` for tensors that do not fit. candle: ``moe_gemm``.
    """
    expect_rank(weights.shape, 3, "moe_gemm: weights")
    nodes = (input._lift(weights)._node,)
    ids = (sorted_token_ids, experts_ids)
    return _gemm("moe_gemm", input, (nodes, DENSE, weights.shape[1]), topk_weights, ids, topk)


def moe_gemm_gguf(
    input: T,
    weights: QTensor,
    topk_weights: TensorBase | None,
    sorted_token_ids: TensorBase,
    experts_ids: TensorBase,
    topk: int,
    is_prefill: bool,
    dtype: DTypeLike,
) -> T:
    """``moe_gemm`` of F32 with quantised experts ``(experts, n, k)`` in Q8_0 or a K-quant of 2 to 6 bits, to F32.

    As in ``QMatMul`` the product is one of F32: Q8_0 stays quantised and is unpacked an expert at a time, on a GPU not
    at all; of a K-quant an F32 copy is kept. candle rounds the input to ``dtype``, F16 or BF16, if ``is_prefill``, and
    to blocks of 8 bits otherwise. Input and ``topk_weights`` have gradients.

    Raises ``UnsupportedDTypeForOpError`` for an input or a ``dtype`` of others and ``ArgumentValueError`` for other
    blocks, else as ``moe_gemm``. candle: ``moe_gemm_gguf``.
    """
    op = "moe_gemm_gguf"
    if not isinstance(weights, QTensor):
        raise ArgumentTypeError(f"{op}: got {described(weights)} for the weights; takes a QTensor")
    if not moe_gemm_gguf_supports_dtype(weights.dtype()):
        takes = ", ".join(str(each) for each in _GGUF)
        raise ArgumentValueError(f"{op}: got weights of {weights.dtype()}; takes one of {takes}")
    if DType.of(dtype) not in (DType.F16, DType.BF16):
        raise UnsupportedDTypeForOpError(op, DType.of(dtype), "a dtype of f16 or bf16")
    if input.dtype is not DType.F32:
        raise UnsupportedDTypeForOpError(op, input.dtype, "an input of f32")
    expect_rank(weights.shape(), 3, f"{op}: weights")
    experts, rows, _ = weights.shape()
    packed, bits = weights.packed()
    nodes = tuple(_apart(node, (experts, rows, -1)) for node in packed)
    ids = (sorted_token_ids, experts_ids)
    return _gemm(op, input, (nodes, bits, rows), topk_weights, ids, topk)


def moe_gemm_gguf_supports_dtype(dtype: GgmlDType) -> bool:
    """Whether ``moe_gemm_gguf`` takes experts of it. candle: ``moe_gemm_gguf_supports_dtype``."""
    return dtype in _GGUF


def _gemm(
    op: str,
    input: T,
    weights: tuple[tuple[GraphNode, ...], int, int],
    topk_weights: TensorBase | None,
    ids: tuple[TensorBase, TensorBase],
    topk: int,
) -> T:
    topk = integer(op, "topk", topk)
    if topk < 1:
        raise ArgumentValueError(f"{op}: got topk {topk}; takes 1 or more")
    expect_rank(input.shape, 2, op)
    pairs = input.shape[0] * (topk if topk_weights is None else 1)
    for name, given in zip(("sorted_token_ids", "experts_ids"), ids):
        if tuple(given.shape) != (pairs,):
            raise ShapeMismatchError(f"{op}: got {name} {tuple(given.shape)}; takes ({pairs},), one for each pair")
    order, experts = (input._lift(given) for given in ids)
    nodes, bits, width = weights
    rows = input.index_select(order if topk_weights is not None or topk == 1 else order / topk, 0)
    found = rows._wrap(record(ExpertLinear(bits), (rows._node, experts._node, *nodes)))
    if topk_weights is not None:
        found = _weighed(op, found, input._lift(topk_weights), order)
    zeros = input._lift(Tensor.zeros((pairs, width), input.dtype, input.device))
    result: T = zeros.index_add(order, found, 0)
    return result


def _weighed(op: str, found: T, factors: T, order: T) -> T:
    if factors.elem_count() != found.shape[0]:
        takes = f"{found.shape[0]} elements, one for each pair"
        raise ShapeMismatchError(f"{op}: got topk_weights {tuple(factors.shape)}; takes {takes}")
    if not factors.dtype.is_float_:
        raise UnsupportedDTypeForOpError(op, factors.dtype, "topk_weights of floats")
    wide = DType.F64 if found.dtype is DType.F64 else DType.F32
    each = factors.to_dtype(wide).reshape((-1,)).index_select(order, 0).unsqueeze(1)
    result: T = (found.to_dtype(wide) * each).to_dtype(found.dtype)
    return result


def _apart(node: GraphNode, shape: tuple[int, ...]) -> GraphNode:
    """A weight's leaf, which has no dim for the experts' rows, with one."""
    value: Any = node.value
    return leaf(value.reshape(shape), node.device)

"""The record of a mixture of experts' product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ...error import DTypeMismatchError, ShapeMismatchBinaryOpError, UnsupportedDTypeForOpError
from ...kernels import expert_linear
from ...kernels.quantized_linear import DENSE
from ...shape import Shape
from ..operation import Gradients, Meta, Metas, Operation
from ..work import elements
from .ids import blank, expect_ids, guard


class ExpertLinear(Operation):
    """Each row of x times the transpose of the weight that its id names: x ``(m, k)``, ids ``(m,)``, then the weight
    ``(experts, n, k)``, to ``(m, n)``.

    The weight is one tensor of x's dtype where ``bits`` is 32, and has a gradient; else codes, scales and biases.
    Ids are as in ``index_select``: the largest value of their dtype gives zeros.
    """

    arity = None
    candle = "candle_nn::moe::moe_gemm(input, weights, topk_weights, sorted_token_ids, experts_ids, topk, is_prefill)"
    work = "product"
    bits: int

    def infer(self, x: Meta, ids: Meta, *weight: Meta) -> Meta:
        if self.bits == DENSE and x.dtype is not weight[0].dtype:
            raise DTypeMismatchError("moe_gemm", x.dtype, weight[0].dtype)
        if not x.dtype.is_float_:
            raise UnsupportedDTypeForOpError("moe_gemm", x.dtype, "bf16, f16, f32 or f64")
        expect_ids("moe_gemm", ids)
        shape = weight[0].shape
        if len(shape) == 3:
            shape = Shape((*shape[:2], shape[2] * 32 // self.bits))
        if len(x.shape) != 2 or len(shape) != 3 or x.shape[1] != shape[2]:
            raise ShapeMismatchBinaryOpError("moe_gemm", x.shape, shape, "(m, k) and weights (experts, n, k)")
        if tuple(ids.shape) != (x.shape[0],):
            raise ShapeMismatchBinaryOpError("moe_gemm", x.shape, ids.shape, f"an expert for each of {x.shape[0]} rows")
        return Meta(Shape((x.shape[0], shape[1])), x.dtype)

    def flops(self, inputs: Sequence[Any], output: Metas) -> int:
        return 2 * elements(output) * int(inputs[0].shape[1])

    def lower(self, x: mx.array, ids: mx.array, *weight: mx.array) -> mx.array:
        known, nothing = guard("moe_gemm", ids, weight[0].shape[0])
        if not (x.size and weight[0].size):
            return mx.zeros((x.shape[0], weight[0].shape[1]), x.dtype)
        return blank(expert_linear.forward(x, known, weight, self.bits), nothing)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        x, ids, *weight = inputs
        if not (math.prod(x.shape) and weight[0].size):
            return tuple(mx.zeros_like(each) if need else None for each, need in zip(inputs, needs))
        known, nothing = guard("moe_gemm", ids, weight[0].shape[0])
        upstream = blank(cotangent, nothing)
        of_x = expert_linear.gradient_of_x(upstream, known, weight, self.bits) if needs[0] else None
        of_weight = expert_linear.gradient_of_weight(upstream, x, known, weight[0]) if needs[2] else None
        return of_x, None, of_weight, *[None] * (len(weight) - 1)

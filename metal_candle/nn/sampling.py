"""Sampling from logits as a tensor operation. candle: ``candle_nn::sampling``.

What chooses the next token of a text is in ``metal_candle.inference``.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from ..dtype import DType
from ..error import ArgumentValueError
from ..graph.operations.counts import number
from ..shape import DimLike
from ..tensor.arguments import expect_tensor

T = TypeVar("T", bound=Any)


def gumbel_softmax(logits: T, temperature: float, dim: DimLike) -> T:
    """Ids along ``dim``, which goes away, U32: for a temperature of 1 drawn from the softmax of the logits.

    They are where logits + temperature · g is largest, g drawn from Gumbel's distribution: as if from
    softmax(logits / temperature). From 0 down it is where the logits are largest, and nothing is drawn. Computed in
    F32, F64 in F64. Noise is -ln(-ln(u)) of u uniform in [0, 1), of which candle cuts off what is above 0.999 and so
    draws what is unlikely too rarely. A logit of -inf is never drawn beside finite ones.

    Jang et al. 2017, https://arxiv.org/abs/1611.01144. Raises ``DimOutOfRangeError``, ``EmptyTensorError``,
    ``UnsupportedDTypeForOpError`` for integers at a temperature above 0, and ``ArgumentValueError`` for one that is
    not finite.
    """
    expect_tensor("gumbel_softmax", logits)
    if not math.isfinite(number("gumbel_softmax", "temperature", temperature)):
        raise ArgumentValueError(f"gumbel_softmax: got temperature {temperature}; takes a finite number")
    result: T
    if temperature <= 0:
        result = logits.argmax(dim)
        return result
    wide = logits.to_dtype(DType.F32) if logits.dtype in (DType.F16, DType.BF16) else logits
    minus_noise = wide.rand_like(0.0, 1.0).log().neg().log()
    result = wide.sub(minus_noise.mul_scalar(temperature)).argmax(dim)
    return result

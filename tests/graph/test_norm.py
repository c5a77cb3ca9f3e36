"""The records of norms as others record them: what they take, and layer norm of many elements in a graph."""

from __future__ import annotations

from typing import Any

from metal_candle import DType, Error, LazyTensor, Var
from metal_candle.graph.operations.norm import LayerNorm, WeightedRMSNorm

import numpy as np
import pytest
from tolerance import GRADIENT, VALUE, assert_near

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("record", [WeightedRMSNorm, LayerNorm])
def test_a_weight_of_another_dtype_is_refused(record: Any) -> None:
    x, weight = LazyTensor.new(normal(3, 8)), LazyTensor.new(normal(8))
    with pytest.raises(Error, match=r"_norm: .*bf16.*f32"):
        x.to_dtype("bf16")._record(record(1e-5), weight)
    with pytest.raises(Error, match=r"_norm: .*f32.*f16"):
        x._record(record(1e-5), weight.to_dtype("f16"))


@pytest.mark.parametrize("record", [WeightedRMSNorm, LayerNorm])
@pytest.mark.parametrize("bad", [(1,), (7,), (1, 8), ()])
def test_a_weight_of_another_shape_is_refused(record: Any, bad: tuple[int, ...]) -> None:
    with pytest.raises(Error, match=r"_norm: got shapes \(3, 8\) and .* takes \(…, n\)"):
        LazyTensor.new(normal(3, 8))._record(record(1e-5), LazyTensor.new(normal(*bad)))


def test_layer_norm_takes_a_weight_and_a_bias() -> None:
    weight = LazyTensor.new(normal(8))
    with pytest.raises(Error, match="layer_norm: got 4 tensors; takes x, a weight and a bias"):
        LazyTensor.new(normal(3, 8))._record(LayerNorm(1e-5), weight, weight, weight)


@pytest.mark.parametrize("rows", [3, 300])
@pytest.mark.parametrize("given", [0, 1, 2])
@pytest.mark.parametrize("dtype", [DType.F64, DType.F32], ids=str)
def test_layer_norm_as_spelled_out(rows: int, given: int, dtype: DType) -> None:
    variables = [Var(x, dtype=dtype) for x in (normal(rows, 64), normal(64), normal(64))[: 1 + given]]
    weights = LazyTensor.new(normal(rows, 64)).to_dtype(dtype)
    x, *rest = map(LazyTensor.from_tensor, variables)
    centred = x.broadcast_sub(x.mean_keepdim(-1))
    spelled = centred.broadcast_div((centred.sqr().mean_keepdim(-1) + 1e-5).sqrt())
    for function, other in zip((spelled.broadcast_mul, None), rest):
        spelled = function(other) if function else spelled.broadcast_add(other)
    found = [
        (result.numpy(), (result * weights).sum_all().backward())
        for result in (x._record(LayerNorm(1e-5), *rest), spelled)
    ]
    assert_near(found[0][0], found[1][0], VALUE[dtype])
    for variable in variables:
        # A gradient of a weight is a sum over all rows.
        near = GRADIENT[dtype]._replace(absolute=10 * GRADIENT[dtype].absolute)
        assert_near(found[0][1][variable].numpy(), found[1][1][variable].numpy(), near)

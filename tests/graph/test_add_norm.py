"""The records of a sum and its norm: values, gradients of both results and of either, shapes, costs, refusals."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var
from metal_candle.error import DTypeMismatchError, ShapeMismatchBinaryOpError, ShapeMismatchError
from metal_candle.graph.node import record
from metal_candle.graph.operation import Operation
from metal_candle.graph.operations.add_norm import AddLayerNorm, AddRMSNorm
from metal_candle.graph.operations.structure import Pick

import numpy as np
import pytest
from slope import central_differences
from tolerance import GRADIENT, VALUE, assert_near

EPS = 1e-5
CASES = [
    pytest.param(kind, shape, rows, id=f"{kind.key}-{shape}-{rows}")
    for kind in (AddRMSNorm, AddLayerNorm)
    for shape in ((5, 13), (2, 3, 4), (7,))
    for rows in range(kind.most_rows + 1)
]


def arrays(shape: tuple[int, ...], rows: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.uniform(-2, 2, shape) for _ in range(2)] + [rng.uniform(0.5, 2, shape[-1:]) for _ in range(rows)]


def both(kind: Any, tensors: list[Any]) -> tuple[Any, Any]:
    node = record(kind(EPS), tuple(tensor._node for tensor in tensors))
    return tensors[0]._wrap(record(Pick(0), (node,))), tensors[0]._wrap(record(Pick(1), (node,)))


@pytest.mark.parametrize("dtype", [DType.F64, DType.F32, DType.F16, DType.BF16], ids=str)
@pytest.mark.parametrize(("kind", "shape", "rows"), CASES)
def test_values(kind: Any, shape: tuple[int, ...], rows: int, dtype: DType) -> None:
    given = [Tensor.new(x).to_dtype(dtype) for x in arrays(shape, rows)]
    want = kind.numpy(*[x.to_dtype("f64").numpy() for x in given], EPS)
    eager = both(kind, given)
    lazy = both(kind, [LazyTensor.from_tensor(x) for x in given])
    compiled = mc.compile(lambda tensors: both(kind, tensors))(given)
    for i, got in enumerate(eager):
        assert (got.shape, got.dtype) == (given[0].shape, dtype)
        # The sum is rounded before it is normed, so the norm of halves is off by its rounding too.
        assert_near(got.to_dtype("f64").numpy(), want[i], VALUE[dtype])
        for other in (lazy[i], compiled[i]):
            np.testing.assert_array_equal(other.to_dtype("f64").numpy(), got.to_dtype("f64").numpy())


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.5, -2.0)], ids=["sum", "norm", "both"])
@pytest.mark.parametrize(("kind", "shape", "rows"), CASES)
def test_gradients(kind: Any, shape: tuple[int, ...], rows: int, weights: tuple[float, float]) -> None:
    """Against central differences in float64."""
    given = arrays(shape, rows)
    upstream = np.random.default_rng(1).uniform(-1, 1, shape)

    def loss(values: list[Any]) -> float:
        return float(sum((w * upstream * y).sum() for w, y in zip(weights, kind.numpy(*values, EPS))))

    slopes = central_differences(loss, given)
    for lazy in (False, True):
        variables = [Var.new(x, mc.Device.Cpu) for x in given]
        results = both(kind, [LazyTensor.from_tensor(v) for v in variables] if lazy else list(variables))
        used = [(w, y) for w, y in zip(weights, results) if w]
        parts = [y.mul(type(y).new(w * upstream, mc.Device.Cpu)).sum_all() for w, y in used]
        grads = (parts[0] if len(parts) == 1 else parts[0] + parts[1]).backward()
        for i, slope in enumerate(slopes):
            found = grads.get(variables[i])
            got = np.zeros_like(slope) if found is None else found.numpy()
            assert_near(got, slope, GRADIENT[DType.F64])


def test_what_does_not_fit() -> None:
    def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
        return [Tensor.zeros(shape, "f32") for shape in shapes]

    for kind in (AddRMSNorm, AddLayerNorm):
        with pytest.raises(ShapeMismatchBinaryOpError, match=kind.key):
            both(kind, tensors((5, 13), (13,)))
        with pytest.raises(ShapeMismatchBinaryOpError, match=kind.key):
            both(kind, tensors((), ()))
        with pytest.raises(ShapeMismatchBinaryOpError, match=r"rows \(n,\)"):
            both(kind, tensors((5, 13), (5, 13), (12,)))
        with pytest.raises(ShapeMismatchError, match=kind.key):
            both(kind, tensors((5, 13), (5, 13), *[(13,)] * (kind.most_rows + 1)))
        with pytest.raises(DTypeMismatchError, match=kind.key):
            both(kind, [Tensor.zeros((5, 13), "f32"), Tensor.zeros((5, 13), "f16")])


def test_what_it_costs() -> None:
    """Both terms are read and both results written; a square, a sum, a scale, and what is beside."""
    metas = [LazyTensor.new(x)._node.meta for x in arrays((5, 13), 2)]
    for operation, given, flops in (
        (Operation.AddRMSNorm(EPS), metas[:2], 4),
        (Operation.AddRMSNorm(EPS), metas[:3], 5),
        (Operation.AddLayerNorm(EPS), metas[:2], 6),
        (Operation.AddLayerNorm(EPS), metas, 8),
    ):
        output = operation.infer(*given)
        assert operation.steps(given, output) == ("norm", 65)
        assert operation.flops(given, output) == flops * 65
        assert operation.traffic(given, output) == (4 * 65 + 13 * (len(given) - 2)) * metas[0].dtype.size_

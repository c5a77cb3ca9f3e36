"""Attention and products in a plan of NumPy calls: all that the records take, not only a step's."""

from __future__ import annotations

from metal_candle import Device, DType
from metal_candle.graph.node import placeholder, record
from metal_candle.graph.operation import Meta, Operation
from metal_candle.graph.operations.fused import Sdpa
from metal_candle.graph.operations.linalg import Linear
from metal_candle.inference import host
from metal_candle.inference.host import HostPlan
from metal_candle.shape import Shape

import numpy as np
import pytest
from tolerance import VALUE, assert_near

Q, K = (2, 4, 3, 8), (2, 2, 5, 8)
ONE = (2, 4, 1, 8)


def by_plan(operation: Operation, arrays: list[np.ndarray]) -> np.ndarray:
    kinds = {"float32": DType.F32, "int64": DType.I64, "uint8": DType.U8}
    inputs = [placeholder(Meta(Shape(a.shape), kinds[str(a.dtype)]), Device.Cpu) for a in arrays]
    output = record(operation, tuple(inputs))
    assert HostPlan.takes(output)
    return np.asarray(HostPlan(output, inputs).run(arrays))


def normal(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("mask", [None, "float", "int64", "uint8"])
@pytest.mark.parametrize("shape", [(3, 5), (5,), (4, 1, 1), (2, 1, 3, 5), (2, 4, 3, 5)])
@pytest.mark.parametrize("width", [8, 6, 1])
def test_attention_with_a_mask_and_values_of_a_width(mask: str | None, shape: tuple[int, ...], width: int) -> None:
    arrays = normal(Q, K, (*K[:3], width))
    if mask == "float":
        arrays += normal(shape)
    elif mask is not None:
        # Of a mask by heads, all keys of one: NaN there.
        hidden = np.arange(int(np.prod(shape))).reshape(shape) % 3 == 1
        arrays.append((~hidden).astype(mask))
    wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
    with np.errstate(invalid="ignore"):
        want = Sdpa.numpy(*wide, 0.3, False)
    assert_near(by_plan(Sdpa(0.3, False), arrays), want, VALUE[DType.F32])


@pytest.mark.parametrize("q", [Q, ONE, (2, 2, 5, 8)])
def test_causal_attention(q: tuple[int, ...]) -> None:
    arrays = normal(q, K, (*K[:3], 6))
    want = Sdpa.numpy(*[a.astype(np.float64) for a in arrays], 0.3, True)
    assert_near(by_plan(Sdpa(0.3, True), arrays), want, VALUE[DType.F32])


def test_queries_that_see_no_key() -> None:
    q, k, v = normal((1, 2, 4, 8), (1, 2, 2, 8), (1, 2, 2, 6))
    assert list(np.isnan(by_plan(Sdpa(0.3, True), [q, k, v]))[0, 0, :, 0]) == [True, True, False, False]
    hidden = np.array([1, 0, 1, 0], np.uint8)[:, None]
    assert list(np.isnan(by_plan(Sdpa(0.3, False), [q, k, v, hidden]))[0, 1, :, 5]) == [False, True, False, True]
    nothing = by_plan(Sdpa(0.3, False), [q, k[:, :, :0], v[:, :, :0]])
    np.testing.assert_array_equal(nothing, np.zeros((1, 2, 4, 6)))


@pytest.mark.parametrize("shape", [(13,), (1, 13), (1, 1, 13), (4, 13), (2, 3, 13), (0, 13), (9, 1, 13)])
def test_products_of_any_number_of_rows(shape: tuple[int, ...]) -> None:
    x, weight = normal(shape, (7, 13))
    want = x.astype(np.float64) @ weight.astype(np.float64).T
    assert_near(by_plan(Linear(), [x, weight]), want, VALUE[DType.F32])


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_products_by_several_threads(rows: int) -> None:
    x, weight = normal((rows, 1, 64), (2 * host.PART // 64 + 3, 64))  # no number of threads divides it
    want = x.astype(np.float64) @ weight.astype(np.float64).T
    assert_near(by_plan(Linear(), [x, weight]), want, VALUE[DType.F32])


def test_adapters_of_rows_and_one_that_is_infinite() -> None:
    base, x, a, b = normal((4, 1, 6), (4, 1, 5), (6, 5), (6, 6))
    ids = np.array([1, -1, 0, 1], np.int32)
    operation = Operation.GroupedLoRA(ranks=(2, 4), scales=(0.5, 2.0))

    def wanted() -> np.ndarray:
        return np.asarray(operation.numpy(base, x, ids, a, b, (2, 4), (0.5, 2.0)))

    nodes = [
        placeholder(Meta(Shape(v.shape), DType.F32 if v.dtype == np.float32 else DType.I32), Device.Cpu)
        for v in (base, x, ids, a, b)
    ]
    plan = HostPlan(record(operation, tuple(nodes)), nodes)
    assert_near(plan.run([base, x, ids, a, b]), wanted(), VALUE[DType.F32])
    b[:2] = np.inf  # the third row's alone
    found = plan.run([base, x, ids, a, b])
    assert not np.isfinite(found[2]).any()
    assert np.isfinite(found[[0, 1, 3]]).all()
    assert_near(found[[0, 1, 3]], wanted()[[0, 1, 3]], VALUE[DType.F32])

"""Attention and products in a plan of NumPy calls: all that the records take, not only a step's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from metal_candle import Device, DType, Tensor
from metal_candle.graph.node import GraphNode, placeholder, record
from metal_candle.graph.operation import Meta, Operation
from metal_candle.graph.operations.fused import Sdpa
from metal_candle.graph.operations.linalg import Linear
from metal_candle.graph.operations.quantized import QuantizedEmbedding, QuantizedLinear
from metal_candle.inference import host_products
from metal_candle.inference.host import HostPlan
from metal_candle.shape import Shape

import mlx.core as mx
import numpy as np
import pytest
from tolerance import VALUE, assert_near

Q, K = (2, 4, 3, 8), (2, 2, 5, 8)
ONE = (2, 4, 1, 8)


def by_plan(operation: Operation, arrays: list[np.ndarray]) -> np.ndarray:
    kinds = {"float32": DType.F32, "int64": DType.I64, "uint8": DType.U8}
    inputs = [placeholder(Meta(Shape(a.shape), kinds[str(a.dtype)]), Device.Cpu) for a in arrays]
    output = record(operation, tuple(inputs))
    assert HostPlan.refusal(output) is None
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
    x, weight = normal((rows, 1, 64), (2 * host_products.PART // 64 + 3, 64))  # no number of threads divides it
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


SCALES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


def packed(shape: tuple[int, int], bits: int, group: int, scales: str) -> tuple[list[mx.array], np.ndarray]:
    """A weight's arrays and its numbers in float64."""
    codes, *others = mx.quantize(mx.array(normal(shape)[0]), group_size=group, bits=bits)
    rounded = [part.astype(SCALES[scales]) for part in others]
    wide = [part.astype(mx.float32) for part in rounded]
    numbers = mx.dequantize(codes, *wide, group_size=group, bits=bits)
    return [codes, *rounded], np.array(numbers, np.float64)


def packed_by_plan(operation: Operation, x: np.ndarray, kind: DType, weight: list[mx.array]) -> np.ndarray:
    given = placeholder(Meta(Shape(x.shape), kind), Device.Cpu)
    output = record(operation, (given, *(Tensor.from_mlx(part)._node for part in weight)))
    assert HostPlan.refusal(output) is None
    return np.asarray(HostPlan(output, [given]).run([x]))


@pytest.mark.parametrize("scales", list(SCALES))
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_products_with_packed_weights(bits: int, group: int, scales: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_products, "_BLOCK", 1 << 10)  # several blocks, of which the last is smaller
    weight, numbers = packed((21, 384), bits, group, scales)
    operation = QuantizedLinear(bits, group)
    for shape in ((1, 1, 384), (4, 1, 384), (9, 1, 384), (0, 1, 384)):
        (x,) = normal(shape)
        error = np.abs(packed_by_plan(operation, x, DType.F32, weight) - x.astype(np.float64) @ numbers.T)
        # A sum of 384 float32 products, some eight roundings deep, of terms that cancel; MLX's own has 2e-7.
        assert (error <= 5e-7 * (np.abs(x) @ np.abs(numbers).T)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_rows_of_packed_tables_are_those_of_mlx(bits: int) -> None:
    weight, numbers = packed((21, 384), bits, 32, "float16")
    ids = np.array([[3], [20], [3]], np.uint32)
    found = packed_by_plan(QuantizedEmbedding(bits, 32), ids, DType.U32, weight)
    np.testing.assert_array_equal(found, numbers[ids].astype(np.float32))


def test_packed_products_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _ = packed((1003, 64), 4, 32, "float32")
    (x,) = normal((1, 1, 64))
    alone = packed_by_plan(QuantizedLinear(4, 32), x, DType.F32, weight)
    monkeypatch.setattr(host_products, "PACKED_PART", 64)
    monkeypatch.setattr(host_products, "_BLOCK", 1 << 12)
    with ThreadPoolExecutor(3) as pool:
        monkeypatch.setattr(host_products, "_threads", lambda: (pool, 3))
        # A BLAS may add up in another order where a block is smaller.
        assert_near(packed_by_plan(QuantizedLinear(4, 32), x, DType.F32, weight), alone, VALUE[DType.F32])


def test_what_it_does_not_take_and_why() -> None:
    def output(operation: Operation, *kinds: tuple[tuple[int, ...], DType]) -> GraphNode:
        return record(operation, tuple(placeholder(Meta(Shape(shape), kind), Device.Cpu) for shape, kind in kinds))

    half = output(Linear(), ((1, 4), DType.F16), ((2, 4), DType.F16))
    assert HostPlan.refusal(half) == "Linear is computed in f16"
    other_mode = QuantizedLinear(4, 32, "mxfp4")
    coded = output(other_mode, ((1, 32), DType.F32), ((2, 4), DType.U32), ((2, 1), DType.U8))
    assert HostPlan.refusal(coded) == "QuantizedLinear has no NumPy function"

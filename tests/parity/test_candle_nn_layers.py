"""``Linear`` and ``Embedding`` of candle's own Python binding and ours, with the same weights."""

from __future__ import annotations

from typing import Any

from metal_candle import DType, nn

import numpy as np
import pytest
from both import FLOATS, INTS, KINDS, Operand, Raised, agree, f32, i64, ours, theirs, u32

their_nn = pytest.importorskip("candle.nn")


def quarters(*shape: int, dtype: DType = DType.F32, seed: int = 0) -> Operand:
    """Multiples of 1/4 from -1 to 1: products and short sums of them are exact in every dtype."""
    return Operand(np.random.default_rng(seed).integers(-4, 5, shape) / 4, dtype)


def their_linear(x: Any, weight: Any, bias: Any = None) -> Any:
    layer = their_nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight, layer.bias = weight, bias
    return layer(x)


def our_linear(x: Any, weight: Any, bias: Any = None) -> Any:
    return nn.Linear(weight, bias).forward(x)


def their_embedding(ids: Any, table: Any) -> Any:
    layer = their_nn.Embedding(*table.shape)
    layer.weight = table
    return layer(ids)


def our_embedding(ids: Any, table: Any) -> Any:
    return nn.Embedding(table, table.dim(1)).forward(ids)


# The binding multiplies no bfloat16 on the CPU.
@pytest.mark.parametrize("dtype", [DType.F16, DType.F32, DType.F64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 8), (5, 8), (2, 3, 8), (1, 1, 8)])
def test_linear(shape: tuple[int, ...], bias: bool, dtype: DType) -> None:
    x, weight, of_bias = (quarters(*s, dtype=dtype, seed=i) for i, s in enumerate([shape, (3, 8), (3,)]))
    agree(their_linear, our_linear, (x, weight, *([of_bias] if bias else [])))


def test_linear_of_any_numbers() -> None:
    """Sums of 64 products of size 1, in another order: some roundings of the largest partial sum."""
    rng = np.random.default_rng(0)
    x, weight, bias = (f32(rng.standard_normal(shape).astype(np.float32)) for shape in [(4, 9, 64), (17, 64), (17,)])
    agree(their_linear, our_linear, (x, weight, bias), 8, 1e-5)


@pytest.mark.parametrize(
    "operands",
    [
        (quarters(5, 7), quarters(3, 8)),
        (quarters(2, 5, 7), quarters(3, 8)),
        (quarters(5, 8), quarters(3, 8, dtype=DType.F16)),
        (quarters(5, 8), quarters(3, 8), quarters(4)),
        (quarters(5, 8), quarters(3, 8), quarters(3, dtype=DType.F64)),
        (u32([[1, 2]]), u32([[1, 2]])),
    ],
    ids=["in", "in of three dims", "dtype", "bias", "bias's dtype", "integers"],
)
def test_linear_refuses_what_candle_refuses(operands: tuple[Operand, ...]) -> None:
    assert isinstance(theirs(their_linear, *operands), Raised)
    agree(their_linear, our_linear, operands)


def test_a_bias_may_broadcast() -> None:
    for bias in (quarters(1), quarters(1, 3), quarters(5, 1)):
        agree(their_linear, our_linear, (quarters(5, 8), quarters(3, 8), bias))


@pytest.mark.parametrize("shape", [(8,), (2, 2, 3, 8)])
def test_a_vector_and_four_dims_work_here(shape: tuple[int, ...]) -> None:
    """The binding refuses both; candle's Linear itself takes four dims."""
    operands = quarters(*shape), quarters(3, 8), quarters(3)
    assert isinstance(theirs(their_linear, *operands), Raised)
    want = np.asarray(operands[0].values) @ np.asarray(operands[1].values).T + np.asarray(operands[2].values)
    for kind in KINDS:
        np.testing.assert_array_equal(ours(kind, our_linear, *operands).values, want)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ids_dtype", INTS)
@pytest.mark.parametrize("ids", [[2, 0, 2], [[6, 1], [1, 1]], [[[3]]], 4], ids=str)
def test_embedding(ids: Any, ids_dtype: DType, dtype: DType) -> None:
    agree(their_embedding, our_embedding, (Operand(ids, ids_dtype), quarters(7, 3, dtype=dtype)))


def test_embedding_refuses_what_candle_refuses() -> None:
    for ids in (u32([7]), i64([-2]), i64([7]), f32([1.0])):
        assert isinstance(theirs(their_embedding, ids, quarters(7, 3)), Raised)
        agree(their_embedding, our_embedding, (ids, quarters(7, 3)))

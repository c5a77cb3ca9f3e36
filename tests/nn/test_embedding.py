"""``Embedding``: rows for ids of every dtype and rank, gradients that add up, errors, and ``mlx.nn.Embedding``."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var, nn

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from checking import assert_slopes, check, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, Tolerance, assert_near

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
EXACT = Tolerance(0.0, 0.0)
IDS = [np.uint8, np.uint32, np.int32, np.int64]


def rows(table: Any, ids: Any) -> Any:
    return nn.Embedding(table, table.dim(1)).forward(ids)


@pytest.mark.parametrize("ids_dtype", IDS)
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
def test_rows_in_every_dtype(dtype: DType, ids_dtype: Any) -> None:
    table, ids = normal(7, 3).astype(np.float16).astype(np.float32), np.array([[0, 6], [3, 3]], ids_dtype)
    rounded = Tensor(table).to_dtype(dtype).to_dtype("f32").numpy()
    check(rows, (table, ids), rounded[ids.astype(int)], dtype=dtype, tolerance=EXACT)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=4), st.integers(1, 9), st.integers(0, 5))
def test_ids_of_any_rank(shape: list[int], vocabulary: int, hidden: int) -> None:
    ids = np.random.default_rng(0).integers(0, vocabulary, shape)
    table = normal(vocabulary, hidden)
    check(rows, (table, ids), table[ids], tolerance=EXACT)


@KINDS
def test_ids_that_are_a_view(kind: Any) -> None:
    table, ids = normal(7, 3), np.arange(6).reshape(2, 3)
    assert_near(rows(Tensor(table), kind.new(ids).t()).numpy(), table[ids.T], EXACT)
    assert_near(rows(Tensor(normal(3, 7)).t(), kind.new(ids)).numpy(), normal(3, 7).T[ids], EXACT)


def test_getters() -> None:
    table = Tensor(normal(7, 3))
    layer = nn.Embedding.new(table, 3)
    assert layer.embeddings() is table
    assert layer.hidden_size() == 3


@KINDS
def test_gradients_add_up_over_repeated_ids(kind: Any) -> None:
    table = Var(normal(5, 2))
    upstream = np.array([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0], [64.0, 128.0]], np.float32)
    taken = nn.Embedding(table, 2).forward(kind.new([3, 0, 3, 3]))
    grads = taken.mul(kind.new(upstream)).sum_all().backward()
    assert grads[table].to_vec2() == [[4.0, 8.0], [0.0, 0.0], [0.0, 0.0], [81.0, 162.0], [0.0, 0.0]]


@KINDS
def test_gradients_of_halves_add_up_in_float32(kind: Any) -> None:
    """4096 ones in bfloat16 stop growing at 256 if each sum is rounded."""
    table = Var(normal(2, 1)).to_dtype("bf16")
    table = Var.from_tensor(table.detach())
    taken = nn.Embedding(table, 1).forward(kind.new(np.ones(4096, np.int64)))
    assert taken.sum_all().backward()[table].to_dtype("f32").to_vec2() == [[0.0], [4096.0]]


def test_gradients_are_slopes() -> None:
    ids = [[1, 4], [4, 0]]

    def function(table: Any) -> Any:
        return rows(table, type(table).new(ids, Device.Cpu))

    assert_slopes(function, normal(5, 3))


@KINDS
def test_the_largest_id_names_no_row(kind: Any) -> None:
    """candle's rule for padding: zeros, and nothing for the gradient."""
    table = Var(normal(3, 2))
    taken = nn.Embedding(table, 2).forward(kind.new(np.array([255, 1], np.uint8)))
    assert_near(taken.numpy(), [[0.0, 0.0], normal(3, 2)[1]], EXACT)
    assert taken.sum_all().backward()[table].to_vec2() == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


@KINDS
def test_refuses(kind: Any) -> None:
    layer = nn.Embedding(Tensor(normal(7, 3)), 3)
    for wrong in (7, -1):
        with pytest.raises(mc.error.InvalidIndexError) as index:
            layer.forward(kind.new([[0, wrong]])).numpy()
        assert str(index.value) == f"embedding: index {wrong} is out of range; takes 0..6"
    for dtype in ("f32", "i16"):
        with pytest.raises(mc.error.UnsupportedDTypeForOpError) as found:
            layer.forward(kind.new([1]).to_dtype(dtype))
        assert str(found.value) == f"embedding: got dtype {dtype}; takes ids of u8, u32, i32 or i64"


@pytest.mark.parametrize("shape", [(7,), (7, 4), (7, 3, 1), ()])
def test_refuses_another_table(shape: tuple[int, ...]) -> None:
    with pytest.raises(mc.error.ShapeMismatchError) as found:
        nn.Embedding(Tensor(normal(*shape)), 3)
    got = f"embedding: got a table of shape {shape} and hidden size 3"
    assert str(found.value) == f"{got}; takes a table (vocabulary, hidden_size)"


@KINDS
def test_the_same_as_mlx_nn(kind: Any) -> None:
    theirs = mlx.nn.Embedding(11, 4)
    ids = np.random.default_rng(0).integers(0, 11, (3, 5))
    table, upstream = Var(theirs.weight), normal(3, 5, 4)
    got = nn.Embedding(table, 4).forward(kind.new(ids))
    assert_near(got.numpy(), np.array(theirs(mx.array(ids))), EXACT)

    def loss(weight: Any) -> Any:
        return (weight[mx.array(ids)] * mx.array(upstream)).sum()

    grads = got.mul(kind.new(upstream)).sum_all().backward()
    # Up to fifteen terms of a row, in another order.
    assert_near(grads[table].numpy(), np.array(mx.grad(loss)(theirs.weight)), VALUE[DType.F32])


def test_how_it_starts_and_shares() -> None:
    mc.Device.Cpu.set_seed(0)
    varmap = nn.VarMap()
    vb = nn.VarBuilder.from_varmap(varmap, DType.F32)
    layer = nn.embedding(500, 40, vb.pp("tokens"))
    assert list(varmap.data()) == ["tokens.weight"]
    table = layer.embeddings().numpy()
    # Standard errors over 20,000 numbers: 0.5 % of the deviation, 0.7 % for the mean.
    assert table.shape == (500, 40)
    assert table.std() == pytest.approx(1.0, rel=0.02)
    assert abs(table.mean()) < 0.03
    varmap.set_one("tokens.weight", Tensor.ones((500, 40)))
    assert layer.forward(Tensor([499])).to_vec2() == [[1.0] * 40]

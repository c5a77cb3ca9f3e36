"""``IndexSelect``, ``Embedding``, ``Gather`` and ``WhereCond``, whose inputs are not plain floats."""

from __future__ import annotations

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var

import mlx.core as mx
import numpy as np
import pytest
from slope import assert_slopes

IDS = [DType.U8, DType.U32, DType.I32, DType.I64]
TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("dtype", IDS, ids=str)
def test_embedding(dtype: DType) -> None:
    ids = [[3, 0], [1, 3]]
    got = Tensor(TABLE).embedding(Tensor(ids, dtype=dtype))
    np.testing.assert_array_equal(got.numpy(), TABLE[ids])


@pytest.mark.parametrize("dtype", IDS, ids=str)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_index_select(dtype: DType, dim: int) -> None:
    ids = [2, 0, 2]
    got = Tensor(TABLE).index_select(Tensor(ids, dtype=dtype), dim)
    np.testing.assert_array_equal(got.numpy(), np.take(TABLE, ids, dim))


@pytest.mark.parametrize("dtype", IDS, ids=str)
def test_gather(dtype: DType) -> None:
    ids = np.array([[0, 2], [1, 1]])
    got = Tensor(TABLE).gather(Tensor(ids, dtype=dtype), 1)
    np.testing.assert_array_equal(got.numpy(), np.take_along_axis(TABLE[:2], ids, 1))
    down = Tensor(TABLE).gather(Tensor([[3, 0, 1]], dtype=dtype), 0)
    assert down.to_vec2() == [[9.0, 1.0, 5.0]]


@pytest.mark.parametrize("dtype", IDS, ids=str)
def test_the_largest_id_stands_for_zeros(dtype: DType) -> None:
    top = mx.iinfo(dtype.mlx_).max
    table, ids = Tensor(TABLE), Tensor([1, top], dtype=dtype)
    assert table.embedding(ids).to_vec2() == [[3.0, 4.0, 5.0], [0.0, 0.0, 0.0]]
    assert table.index_select(ids, 1).to_vec2() == [[1.0, 0.0], [4.0, 0.0], [7.0, 0.0], [10.0, 0.0]]
    assert table.gather(Tensor([[1, top]], dtype=dtype), 1).to_vec2() == [[1.0, 0.0]]
    w = Var(TABLE)
    assert w.index_select(ids, 1).backward()[w].to_vec2() == [[0.0, 1.0, 0.0]] * 4


@pytest.mark.parametrize("wrong", [4, -1, 10**6])
def test_an_id_outside_raises_eager_at_the_call_lazy_at_eval(wrong: int) -> None:
    table, ids = Tensor(TABLE), Tensor([0, wrong])
    for operation, name in [
        (lambda table, ids: table.embedding(ids), "embedding"),
        (lambda table, ids: table.index_select(ids, 0), "index_select"),
        (lambda table, ids: table.gather(ids.reshape((2, 1)), 0), "gather"),
    ]:
        text = rf"{name}: index {wrong} is out of range; takes 0\.\.3"
        with pytest.raises(IndexError, match=text):
            operation(table, ids)
        recorded = operation(LazyTensor.from_tensor(table), LazyTensor.from_tensor(ids))
        with pytest.raises(mc.Error, match=text):
            recorded.eval()


def test_inside_mx_compile_ids_outside_give_zeros() -> None:
    """There is no value to look at; foreign memory is not read either."""
    operation = mc.graph.Operation.Embedding
    run = mx.compile(lambda ids: operation.lower(mx.array(TABLE), ids))
    with mx.stream(mx.cpu):
        np.testing.assert_array_equal(np.array(run(mx.array([1, 99], mx.int32))), [[3, 4, 5], [0, 0, 0]])
        # An ids dtype whose values end before the dim does: only its largest stands for zeros.
        long = mx.compile(lambda ids: mc.graph.Operation.IndexSelect(0).lower(mx.arange(1000), ids))
        assert long(mx.array([250, 255], mx.uint8)).tolist() == [250, 0]


def test_an_empty_table_has_only_zeros() -> None:
    empty = Tensor.zeros((0, 3))
    assert empty.embedding(Tensor([255], dtype="u8")).to_vec2() == [[0.0, 0.0, 0.0]]
    with pytest.raises(IndexError, match="embedding: index 0"):
        empty.embedding(Tensor([0], dtype="u8"))


def test_gradients_add_up_over_repeated_ids() -> None:
    w, ids = Var(TABLE), Tensor([1, 1, 3])
    grads = w.embedding(ids).backward()
    assert grads[w].to_vec2() == [[0.0] * 3, [2.0] * 3, [0.0] * 3, [1.0] * 3]
    assert w.gather(Tensor([[0, 0]]), 1).backward()[w].to_vec2()[0] == [2.0, 0.0, 0.0]


@pytest.mark.parametrize("shape", [(4, 3, 2), (0, 3, 2), (4, 0, 2), (4, 5, 2), (2, 1, 1)])
def test_gather_takes_indexes_shorter_in_the_other_dims(shape: tuple[int, ...]) -> None:
    x = np.arange(24).reshape(4, 3, 2)
    ids = np.random.default_rng(0).integers(0, 3, shape)
    want = np.take_along_axis(x[: shape[0], :, : shape[2]], ids, 1)
    for kind in (Tensor, LazyTensor):
        np.testing.assert_array_equal(kind.new(x).gather(kind.new(ids), 1).numpy(), want)


def test_gradients_are_slopes_also_of_repeated_and_of_no_ids() -> None:
    table, top = np.random.default_rng(0).normal(size=(4, 3)), 2**63 - 1
    assert_slopes(lambda x: x.embedding(Tensor([[1, 1], [3, top]])), table)
    assert_slopes(lambda x: x.index_select(Tensor([2, 0, 2, top]), 1), table)
    assert_slopes(lambda x: x.gather(Tensor([[2, 2, 0, top], [1, 1, 1, 1]]), 1), table)
    assert_slopes(lambda x: x.gather(Tensor([[2, 2, 0]] * 5), 0), table)
    condition = Tensor(np.eye(4, 3, dtype=np.int64))
    assert_slopes(lambda a, b: a._lift(condition).where_cond(a, b), table, -table)


def test_index_operations_refuse_when_recorded() -> None:
    x = LazyTensor.new(TABLE)
    with pytest.raises(TypeError, match=r"embedding: got dtype f32; takes ids of u8, u32, i32 or i64"):
        x.embedding(x)
    text = r"index_select: got shapes \(4, 3\) and \(1, 1\); takes 1-D indexes"
    with pytest.raises(mc.error.ShapeMismatchBinaryOpError, match=text):
        x.index_select(Tensor([[0]]), 0)
    text = r"embedding: got shapes \(4,\) and \(1,\); takes a table \(v, h\)"
    with pytest.raises(mc.error.ShapeMismatchBinaryOpError, match=text):
        x[:, 0].embedding(Tensor([0]))
    with pytest.raises(TypeError, match=r"gather: got dtype i16; takes ids of u8, u32, i32 or i64"):
        x.gather(Tensor([[0]], dtype="i16"), 0)
    with pytest.raises(IndexError, match=r"index_select: dim 2 is out of range for shape \(4, 3\); takes -2..1"):
        x.index_select(Tensor([0]), 2)
    with pytest.raises(ValueError, match=r"gather: got shapes \(4, 3\) and \(5, 1\); takes indexes no larger"):
        x.gather(Tensor([[0]] * 5), 1)


@pytest.mark.parametrize("dtype", list(DType), ids=str)
def test_values_of_every_dtype(dtype: DType) -> None:
    x = Tensor.new([[1, 2], [3, 4]], Device.Cpu, dtype)
    for got, want in [
        (x.embedding(Tensor([1])), [[3, 4]]),
        (x.index_select(Tensor([1, 0]), 1), [[2, 1], [4, 3]]),
        (x.gather(Tensor([[1], [255]], dtype="u8"), 1), [[2], [0]]),
        (Tensor([[1, 0], [0, 1]]).where_cond(x, x.zeros_like()), [[1, 0], [0, 4]]),
    ]:
        assert got.dtype is dtype
        assert got.tolist() == want


@pytest.mark.parametrize("dtype", [DType.U8, DType.I16, DType.U32, DType.I32, DType.I64], ids=str)
def test_where_cond(dtype: DType) -> None:
    condition = Tensor([1, 0, 5], dtype=dtype)
    a, b = Var([1.0, 2.0, 3.0]), Var([-1.0, -2.0, -3.0])
    got = condition.where_cond(a, b)
    assert got.to_vec1() == [1.0, -2.0, 3.0]
    grads = (got * Tensor([10.0, 20.0, 30.0])).backward()
    assert grads[a].to_vec1() == [10.0, 0.0, 30.0]
    assert grads[b].to_vec1() == [0.0, 20.0, 0.0]


def test_where_cond_keeps_nan_out_of_the_gradient() -> None:
    """The branch that is not taken gets 0, whatever its value."""
    a = Var([float("nan"), 1.0])
    assert Tensor([0, 1]).where_cond(a, Tensor([2.0, 2.0])).backward()[a].to_vec1() == [0.0, 1.0]


def test_where_cond_refuses_when_recorded() -> None:
    x = LazyTensor.new([1.0, 2.0])
    with pytest.raises(TypeError, match=r"where_cond: got dtype f32; takes an integer condition"):
        x.where_cond(x, x)
    with pytest.raises(TypeError, match=r"where_cond: dtypes differ, lhs f32, rhs i64"):
        LazyTensor.new([1, 0]).where_cond(x, LazyTensor.new([1, 2]))
    with pytest.raises(ValueError, match=r"where_cond: got shapes \(3,\) and \(2,\); takes three equal shapes"):
        LazyTensor.new([1, 0, 1]).where_cond(x, x)

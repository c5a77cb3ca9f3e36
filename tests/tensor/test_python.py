"""What Python and its libraries expect: numbers, sequences, copies, pickles, NumPy, DLPack."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var, nn

import mlx.core as mx
import numpy as np
import pytest

KINDS = [Tensor, LazyTensor]
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_numbers_of_one_element(kind: Any) -> None:
    for one in (kind.new(2.5), kind.new([2.5]), kind.new([[2.5]])):
        assert float(one) == 2.5
        assert int(one) == 2
        assert bool(one)
        assert f"{one:.3f}" == "2.500"
        assert math.floor(float(one)) == 2
    assert not kind.new(0)
    assert operator.index(kind.new([3])) == 3
    assert ["a", "b"][kind.new(1)] == "b"
    with pytest.raises(TypeError, match="index: expected dtype an integer dtype, got f32"):
        operator.index(kind.new(1.0))
    for several in (kind.new([1.0, 2.0]), kind.new(np.zeros((0,), np.float32))):
        for convert in (float, int, bool):
            with pytest.raises(ValueError, match=r"a Python number: got rank 1.*takes rank 0, or one element"):
                convert(several)


@kinds
def test_sequences(kind: Any) -> None:
    t = kind.new([[1, 2], [3, 4], [5, 6]])
    assert len(t) == 3
    assert [row.to_vec1() for row in t] == [[1, 2], [3, 4], [5, 6]]
    first, *_ = t
    assert type(first) is type(t[0])
    assert [row.to_vec1() for row in reversed(t)] == [[5, 6], [3, 4], [1, 2]]
    with pytest.raises(ValueError, match=r"len: got rank 0, shape \(\); takes rank 1 or more"):
        len(kind.new(1))
    with pytest.raises(ValueError, match="len"):
        list(kind.new(1))


def test_recording_methods_do_not_compute() -> None:
    t = LazyTensor.new([[1.0], [2.0]]) + 1.0
    assert len(t) == 2
    list(t)
    hash(t)
    repr(t)
    str(t)
    f"{t}"
    copy.copy(t)
    assert not t.is_evaluated()


def test_a_copy_is_candles_clone_and_a_deep_copy_has_its_own_storage() -> None:
    t = Tensor([1.0, 2.0])
    clone, deep = copy.copy(t), copy.deepcopy(t)
    t.const_set(7.0)
    assert clone.to_vec1() == [7.0, 7.0]
    assert clone.id() == t.id()
    assert deep.to_vec1() == [1.0, 2.0]
    lazy = LazyTensor.new([1.0]) * 2.0
    assert copy.deepcopy(lazy).to_vec1() == [2.0]
    assert type(copy.deepcopy(lazy)) is LazyTensor
    assert type(copy.deepcopy(Var([1.0, 2.0])[0:1])).__name__ == "Tensor"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_what_shares_a_variable_shares_the_copy(duplicate: Any) -> None:
    w = Var([1.0, 2.0])
    copied = duplicate({"var": w, "layer": w.as_tensor(), "again": w})
    assert type(copied["var"]) is Var
    copied["var"].set(Tensor([5.0, 6.0]))
    assert copied["layer"].to_vec1() == [5.0, 6.0] == copied["again"].to_vec1()
    assert w.to_vec1() == [1.0, 2.0]
    assert copied["layer"].sqr().backward()[copied["var"]].to_vec1() == [10.0, 12.0]


@pytest.mark.parametrize("dtype", list(DType), ids=str)
@kinds
def test_pickle(kind: Any, dtype: DType) -> None:
    for data in (3, [[1, 2, 3], [4, 5, 6]], np.zeros((0, 2))):
        t = kind.new(data, dtype=dtype)
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            back = pickle.loads(pickle.dumps(t, protocol))
            assert (type(back), back.shape, back.dtype, back.device) == (kind, t.shape, dtype, t.device)
            np.testing.assert_array_equal(back.numpy(), t.numpy())


def test_pickle_keeps_every_bit() -> None:
    odd = np.array([np.nan, -0.0, np.inf, 1e-42], np.float32)
    back = pickle.loads(pickle.dumps(Tensor(odd)))
    np.testing.assert_array_equal(back.numpy().view(np.uint32), odd.view(np.uint32))


@pytest.mark.parametrize("dtype", list(DType), ids=str)
@kinds
def test_numpy(kind: Any, dtype: DType) -> None:
    t = kind.new([[0, 1], [2, 3]], dtype=dtype)
    array = t.numpy()
    assert array.dtype == (np.float32 if dtype is DType.BF16 else np.dtype(str(dtype.mlx_).rpartition(".")[2]))
    np.testing.assert_array_equal(array, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(np.asarray(t), array)
    assert np.asarray(t, np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.stack([t, t]), np.stack([array, array]))
    assert np.mean(t.numpy()) == 1.5
    assert isinstance(t.mlx(), mx.array)
    assert t.mlx().dtype == dtype.mlx_


def test_numpy_numbers_and_arrays_beside_tensors() -> None:
    t = Tensor([1.0, 2.0])
    assert (np.float32(2) * t).to_vec1() == [2.0, 4.0]
    assert (t * np.int64(3)).to_vec1() == [3.0, 6.0]
    with pytest.raises(TypeError):
        np.array([1.0, 2.0]) * t  # an array is no tensor: Tensor.from_numpy makes one


def test_an_array_cannot_change_the_tensor() -> None:
    t = Tensor([1.0, 2.0])
    array = np.array(t, copy=True)
    array[0] = 9.0
    assert t.to_vec1() == [1.0, 2.0]
    with pytest.raises(ValueError, match="takes a copy"):
        t.__array__(np.float64, copy=False)


@pytest.mark.parametrize("dtype", [DType.U8, DType.I32, DType.I64, DType.F16, DType.F32, DType.F64], ids=str)
@kinds
def test_dlpack_to_numpy(kind: Any, dtype: DType) -> None:
    t = kind.new([[1, 2], [3, 4]], dtype=dtype) + kind.new([[0, 0], [0, 0]], dtype=dtype)
    np.testing.assert_array_equal(np.from_dlpack(t), t.numpy())


@kinds
def test_dlpack_to_torch_and_back(kind: Any) -> None:
    torch = pytest.importorskip("torch")
    for dtype in (DType.F32, DType.BF16, DType.F16, DType.I64, DType.U8):
        t = kind.new([[1, 2], [3, 4]], dtype=dtype)
        there = torch.from_dlpack(t)
        assert there.tolist() == [[1, 2], [3, 4]]
        assert str(there.dtype).endswith({"bf16": "bfloat16", "f16": "float16"}.get(str(dtype), str(there.dtype)[6:]))
        back = kind.from_dlpack(there * 2)
        assert (back.dtype, back.tolist()) == (dtype, [[2, 4], [6, 8]])


def test_tensors_can_be_keys() -> None:
    a, b = Tensor([1.0]), Tensor([1.0])
    assert {a: 1, b: 2}[a] == 1
    assert len({a, b, a}) == 2


def test_apply() -> None:
    class Double:
        def forward(self, x: Any) -> Any:
            return x * 2.0

    class Drop(Double):
        def forward_t(self, x: Any, train: bool) -> Any:
            return x * 0.0 if train else x

    t = Tensor([1.0, 2.0])
    assert t.apply(Double()).to_vec1() == [2.0, 4.0]
    assert t.apply(lambda x: x + 1.0).to_vec1() == [2.0, 3.0]
    assert t.apply_t(Drop(), True).to_vec1() == [0.0, 0.0]
    assert t.apply_t(Drop(), False).to_vec1() == [1.0, 2.0]
    assert t.apply_t(Double(), True).to_vec1() == [2.0, 4.0]


def test_methods_are_pickled_by_name() -> None:
    """As the functions of a ``Sequential`` are."""
    for kind in (Tensor, LazyTensor, Var):
        for name in ("relu", "softmax", "matmul", "reshape", "__add__", "__rsub__", "__lt__"):
            method = getattr(kind, name)
            assert pickle.loads(pickle.dumps(method)) is method
    x = Tensor([-1.0, 2.0])
    model = nn.seq().add_fn(Tensor.relu).add_fn(Tensor.sqr)
    assert pickle.loads(pickle.dumps(model))(x).to_vec1() == model(x).to_vec1() == [0.0, 4.0]

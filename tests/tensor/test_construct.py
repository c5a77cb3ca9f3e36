"""Constructors, dtypes, and values as Python, NumPy and MLX objects."""

from __future__ import annotations

import re
import threading
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Shape, Tensor, Var, error

import mlx.core as mx
import numpy as np
import pytest

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor, Var])
DTYPES = pytest.mark.parametrize("dtype", list(DType), ids=str)


@KINDS
@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1, DType.I64),
        (1.5, DType.F32),
        (True, DType.U8),
        ([1, 2], DType.I64),
        ([1, 2.5], DType.F32),
        ([[True, False]], DType.U8),
        ([], DType.F32),
        (np.zeros(2, np.float64), DType.F64),
        (np.zeros(2, np.float16), DType.F16),
        (np.zeros(2, np.int32), DType.I32),
        (np.zeros(2, np.bool_), DType.U8),
        (np.float64(2), DType.F64),
        (mx.zeros(2, mx.bfloat16), DType.BF16),
        (mx.zeros(2) > 1, DType.U8),
    ],
)
def test_new_chooses_a_dtype(kind: Any, data: Any, dtype: DType) -> None:
    tensor = kind.new(data)
    assert tensor.dtype is dtype
    assert tuple(tensor.shape) == np.shape(np.array(data.tolist() if isinstance(data, mx.array) else data))
    assert kind.new(data, dtype="f16").dtype is DType.F16


@KINDS
@DTYPES
def test_zeros_ones_eye_full(kind: Any, dtype: DType) -> None:
    for tensor, want in [
        (kind.zeros((2, 3), dtype), np.zeros((2, 3))),
        (kind.ones(3, dtype), np.ones(3)),
        (kind.ones((), dtype), np.ones(())),
        (kind.eye(3, dtype), np.eye(3)),
        (kind.ones((2,), dtype).zeros_like(), np.zeros(2)),
        (kind.zeros((2,), dtype).ones_like(), np.ones(2)),
    ]:
        assert tensor.dtype is dtype
        np.testing.assert_array_equal(tensor.numpy(), want)
        assert tuple(tensor.shape) == want.shape


def test_full_arange_and_flat_lists() -> None:
    assert Tensor.full(2.5, (2,)).to_vec1() == [2.5, 2.5]
    assert Tensor.full(7, 2).dtype is DType.I64
    assert Tensor.arange(2, 5).to_vec1() == [2, 3, 4]
    assert Tensor.arange(0.0, 1.0).dtype is DType.F32
    assert Tensor.arange(5, 2).to_vec1() == []
    assert Tensor.arange_step(5, 0, -2).to_vec1() == [5, 3, 1]
    assert Tensor.from_slice([1.0, 2.0, 3.0, 4.0], (2, -1)).to_vec2() == [[1.0, 2.0], [3.0, 4.0]]
    assert Tensor.from_vec([1, 2], (2,)).dtype is DType.I64
    assert Tensor.from_iter(i * i for i in range(3)).to_vec1() == [0, 1, 4]
    with pytest.raises(ValueError, match="arange_step: got step 0; takes any other"):
        Tensor.arange_step(0, 1, 0)
    with pytest.raises(ValueError, match=r"from_slice: 3 elements do not fit shape \(2,\) of 2"):
        Tensor.from_slice([1, 2, 3], 2)


def test_zeros_like_of_what_is_not_finite_is_zero() -> None:
    assert Tensor([float("nan"), float("inf")]).zeros_like().to_vec1() == [0.0, 0.0]
    w = Var([1.0])
    assert not w.zeros_like().track_op()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([[1], [1, 2]], "new: got lists of different lengths; takes a rectangular nesting"),
        (["a"], "new: got .*; takes numbers, nested lists of them, or an array"),
        ([None], "new: got .*; takes numbers, nested lists of them, or an array"),
        (np.zeros(1, np.complex64), "dtype: cannot read"),
    ],
)
def test_data_that_is_no_tensor(data: Any, text: str) -> None:
    with pytest.raises(mc.Error, match=text):
        Tensor(data)


def test_shapes_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"zeros: got \(2, -1\); takes integers that are not negative"):
        Tensor.zeros((2, -1))
    with pytest.raises(TypeError, match=r"zeros: got \(True,\)"):
        Tensor.zeros((True,))


@DTYPES
def test_values_come_back(dtype: DType) -> None:
    tensor = Tensor([[0, 1], [2, 3]], dtype=dtype)
    assert tensor.to_vec2() == tensor.tolist() == [[0, 1], [2, 3]]
    assert tensor.numpy().dtype == (np.float32 if dtype is DType.BF16 else np.dtype(tensor.numpy().dtype.name))
    np.testing.assert_array_equal(np.asarray(tensor), [[0, 1], [2, 3]])
    assert tensor.mlx().dtype == dtype.mlx_
    assert Tensor.from_mlx(tensor.mlx()).to_vec2() == tensor.to_vec2()
    assert Tensor.from_numpy(tensor.numpy()).to_vec2() == tensor.to_vec2()


def test_numbers() -> None:
    one = Tensor([[3.0]])
    assert (float(one), int(one), bool(one)) == (3.0, 3, True)
    assert Tensor(2).to_scalar() == Tensor(2).to_vec0() == 2
    assert len(Tensor([1, 2])) == 2
    assert [x.to_vec1() for x in Tensor([[1, 2], [3, 4]])] == [[1, 2], [3, 4]]
    assert Tensor([[[1]]]).to_vec3() == [[[1]]]


def test_properties() -> None:
    x = LazyTensor.zeros((2, 3, 4), "f16")
    assert (x.rank, x.nelement, x.elem_count(), x.stride, x.dims()) == (3, 24, 24, (12, 4, 1), [2, 3, 4])
    assert isinstance(x.shape, Shape)
    assert (x.dim(-1), x.dims3()) == (4, (2, 3, 4))
    assert (x[0, 0].dims1(), x[0].dims2(), x.unsqueeze(0).dims4(), x.sum_all().dims0()) == (4, (3, 4), (1, 2, 3, 4), ())


@pytest.mark.parametrize(
    ("source", "values", "target", "want"),
    [
        ("f32", [1.9, -1.9, 300.0, -300.0, float("nan"), float("inf")], "u8", [1, 0, 255, 0, 0, 255]),
        ("f32", [1.9, -1.9, 3e9, -3e9, float("nan"), float("-inf")], "i32", [1, -1, 2**31 - 1, -(2**31), 0, -(2**31)]),
        ("f32", [1e20, -1e20, 2.0**62], "i64", [2**63 - 1, -(2**63), 2**62]),
        ("f32", [5e9, -1.0], "u32", [2**32 - 1, 0]),
        ("f16", [65504.0, -2.5], "i16", [32767, -2]),
        ("bf16", [300.0], "u8", [255]),
        ("i64", [300, -1], "u8", [44, 255]),
        ("u8", [1, 0], "f32", [1.0, 0.0]),
    ],
)
def test_casts_truncate_saturate_and_turn_nan_into_0(source: str, values: Any, target: str, want: Any) -> None:
    assert Tensor(values, dtype=source).to_dtype(target).to_vec1() == want


def test_f64_casts_keep_what_float32_would_lose() -> None:
    assert Tensor([16777217.0], dtype="f64").to_dtype("i64").to_vec1() == [16777217]


def test_integer_division_truncates() -> None:
    a = Tensor([7, -7, 7, -7])
    assert a.div(Tensor([2, 2, -2, -2])).to_vec1() == [3, -3, -3, 3]
    assert (a / 2).to_vec1() == [3, -3, 3, -3]


def test_scalars_take_the_tensor_s_dtype() -> None:
    half = Tensor([1.0, 2.0], dtype="f16")
    for result, want in [
        (half + 1, [2.0, 3.0]),
        (1 - half, [0.0, -1.0]),
        (half - 1, [0.0, 1.0]),
        (half * np.float64(0.5), [0.5, 1.0]),
        (np.float32(2) * half, [2.0, 4.0]),
        (2 / half, [2.0, 1.0]),
        (half / 2, [0.5, 1.0]),
        (-half, [-1.0, -2.0]),
        (half**2, [1.0, 4.0]),
    ]:
        assert result.dtype is DType.F16
        assert result.to_vec1() == want
    ints = Tensor([2**62, 1])
    assert (ints + 1).to_vec1() == [2**62 + 1, 2]
    assert (3 - Tensor([1], dtype="u8")).to_vec1() == [2]
    assert (ints > 1).to_vec1() == [1, 0]
    assert Tensor([1.0, 3.0]).maximum(2.0).to_vec1() == [2.0, 3.0]


def test_adding_and_scaling_by_a_number_is_one_operation_of_one_tensor() -> None:
    x = LazyTensor.new([1.0])
    for y in (x + 1, x - 1, 1 - x, x * 2, 2 * x):
        assert y._node.operation.name() == "affine"
        assert y.graph_size() == 2


def test_comparing_gives_a_tensor_and_hashing_is_by_identity() -> None:
    a, b = Tensor([1.0]), Tensor([1.0])
    assert (a == b).dtype is DType.U8
    assert len({a, b}) == 2


def test_printing() -> None:
    assert repr(Tensor(1.5)) == "Tensor[1.5; f32]"
    assert repr(Tensor([1, 2])) == "Tensor[1, 2; i64]"
    assert repr(Tensor.zeros((2, 3))) == "Tensor[dims 2, 3; f32]"
    assert str(Tensor([[1.0]])) == "[[1.]]\nTensor[[1, 1], f32]"
    assert repr(Var([1.0])) == "Var[1; f32]"


def test_tensors_work_in_another_thread() -> None:
    """MLX's own arrays do not, unless they were computed in the thread that made them."""
    tensors = [Tensor.zeros((2,)), Tensor.full(2.0, (2,)), Tensor.randn(0.0, 1.0, (2,)), Tensor.eye(2)]
    recorded = [LazyTensor.from_tensor(tensors[1]) * 2.0, LazyTensor.rand(0.0, 1.0, (3,))]
    compiled = mc.compile(lambda x: x + 1.0)
    compiled(tensors[1])
    w, failures = Var.zeros((2,)), []

    def work() -> None:
        try:
            assert recorded[0].eval().to_vec1() == [4.0, 4.0]
            assert len(recorded[1].eval().to_vec1()) == 3
            assert all((tensor + 1.0).numpy().shape == tuple(tensor.shape) for tensor in tensors)
            assert compiled(tensors[1]).to_vec1() == [3.0, 3.0]
            w.set(tensors[1])
            assert (w * 2.0).backward()[w].to_vec1() == [2.0, 2.0]
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
    assert (w + tensors[2]).to_vec1() == (tensors[2] + 2.0).to_vec1()


# --- constants ----------------------------------------------------------------------------------


@KINDS
@DTYPES
def test_triangles_and_what_is_like_another(kind: Any, dtype: DType) -> None:
    for n in (0, 1, 4):
        ones = np.ones((n, n))
        for tensor, want in [
            (kind.tril2(n, dtype), np.tril(ones)),
            (kind.triu2(n, dtype), np.triu(ones)),
            (kind.eye(n, dtype), np.eye(n)),
        ]:
            assert tensor.dtype is dtype
            np.testing.assert_array_equal(tensor.numpy().reshape(n, n), want)
    start = kind.ones((2, 3), dtype)
    assert kind.empty((2, 3), dtype).dims() == start.empty_like().dims() == [2, 3]
    assert kind.empty((2, 3), dtype).dtype is start.empty_like().dtype is dtype
    for like in (start.zeros_like(), start.ones_like(), start.empty_like()):
        assert not like.track_op()
        assert not isinstance(like, Var)
        assert isinstance(like, LazyTensor) == (kind is LazyTensor)


@KINDS
@pytest.mark.parametrize(
    ("value", "dtype", "want"),
    [
        (7, None, DType.I64),
        (2.5, None, DType.F32),
        (True, None, DType.U8),
        (np.float16(1), None, DType.F16),
        (np.float64(1), None, DType.F64),
        (mx.array(3, mx.bfloat16), None, DType.BF16),
        (7, "u8", DType.U8),
        (2.5, "f64", DType.F64),
    ],
)
def test_full_has_the_dtype_of_its_number(kind: Any, value: Any, dtype: Any, want: DType) -> None:
    for shape in ((), 3, (2, 0), (2, 2)):
        tensor = kind.full(value, shape, dtype=dtype)
        assert (tensor.dtype, tensor.shape) == (want, Shape.of(shape))
        assert np.all(tensor.numpy() == float(value))


def test_full_takes_one_number_that_fits() -> None:
    with pytest.raises(
        error.UnexpectedNumberOfDimsError, match=re.escape("full: got rank 1, shape (2,); takes rank 0")
    ):
        Tensor.full([1, 2], (2,))
    with pytest.raises(mc.Error, match="full: 256 is no u8; takes an integer from 0 to 255"):
        Tensor.full(256, (2,), dtype="u8")
    with pytest.raises(mc.Error, match="full: got a tensor that a gradient goes through"):
        Tensor.full(Var(1.0) * 2.0, (2,))


@KINDS
def test_devices_are_taken_by_name(kind: Any) -> None:
    for tensor in (
        kind.new([1.0], "cpu"),
        kind.zeros(2, "f32", "cpu"),
        kind.full(1.0, 2, mx.cpu),
        kind.rand(0.0, 1.0, 2, "cpu"),
        kind.from_vec([1], 1, "cpu:0"),
    ):
        assert tensor.device == Device.Cpu
    with pytest.raises(mc.Error, match="device: cannot read 'tpu'"):
        kind.zeros(2, "f32", "tpu")

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
from hypothesis import given, settings
from hypothesis import strategies as st

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


# --- ranges -------------------------------------------------------------------------------------


def by_adding(start: Any, end: Any, step: Any, rounded: Any) -> list[float]:
    """candle's loop."""
    found, current, end, step = [], rounded(start), rounded(end), rounded(step)
    while current < end if step > 0 else current > end:
        found.append(float(current))
        current = rounded(current + step)
    return found


@settings(deadline=None, max_examples=80)
@given(
    st.integers(-40, 40), st.integers(-40, 40), st.integers(-9, 9).filter(bool), st.sampled_from(["i16", "i32", "i64"])
)
def test_ranges_of_integers_are_python_s(start: int, end: int, step: int, dtype: str) -> None:
    for kind in (Tensor, LazyTensor):
        tensor = kind.arange_step(start, end, step, dtype=dtype)
        assert tensor.tolist() == list(range(start, end, step))
        assert tensor.dtype is DType.of(dtype)
    assert Tensor.arange(start, end).tolist() == list(range(start, end))


@settings(deadline=None, max_examples=80)
@given(
    st.floats(-20, 20, width=16),
    st.floats(-20, 20, width=16),
    st.floats(0.03125, 4, width=16),
    st.sampled_from([1, -1]),
    st.sampled_from(["f16", "f32", "f64"]),
)
def test_ranges_of_floats_are_candle_s_sum(start: float, end: float, step: float, sign: int, dtype: str) -> None:
    rounded = {"f16": np.float16, "f32": np.float32, "f64": np.float64}[dtype]
    tensor = Tensor.arange_step(start, end, sign * step, dtype=dtype)
    assert tensor.tolist() == by_adding(start, end, sign * step, rounded)
    assert tensor.dtype is DType.of(dtype)


@settings(deadline=None, max_examples=20)
@given(st.integers(-300, 100), st.integers(0, 300), st.integers(2, 64))
def test_ranges_of_bf16_are_candle_s_sum(start: int, length: int, step: int) -> None:
    def rounded(value: Any) -> np.float32:
        return np.float32(mx.array(float(value), mx.bfloat16).item())

    tensor = Tensor.arange_step(start, start + length, step, dtype="bf16")
    assert tensor.tolist() == by_adding(start, start + length, step, rounded)


def test_rounding_decides_how_many_numbers_there_are() -> None:
    """0.1 added ten times stays below 1 in F64, and above it in F32."""
    assert Tensor.arange_step(0.0, 1.0, 0.1, dtype="f64").dims() == [11]
    assert Tensor.arange_step(0.0, 1.0, 0.1).dims() == [10]
    assert mx.arange(0.0, 1.0, 0.1).shape == (10,)


def test_long_ranges_of_floats() -> None:
    tensor = Tensor.arange(0.0, 3e6)
    assert tensor.dims() == [3_000_000]
    np.testing.assert_array_equal(tensor.numpy(), np.arange(3_000_000, dtype=np.float32))


@KINDS
@pytest.mark.parametrize(
    ("start", "end", "step", "dtype"),
    [
        (0, 3, 1, DType.I64),
        (np.int32(0), 3, 1, DType.I64),
        (0.0, 3, 1, DType.F32),
        (0, 3.0, 1, DType.F32),
        (0, 3, 1.0, DType.F32),
    ],
)
def test_ranges_choose_a_dtype(kind: Any, start: Any, end: Any, step: Any, dtype: DType) -> None:
    tensor = kind.arange_step(start, end, step)
    assert (tensor.dtype, tensor.tolist()) == (dtype, [0, 1, 2])
    assert kind.arange(0, 3, dtype="u8").dtype is DType.U8


def test_ranges_at_the_ends_of_a_dtype() -> None:
    assert Tensor.arange(250, 256, dtype="u8").tolist() == [250, 251, 252, 253, 254, 255]
    assert Tensor.arange_step(250, 256, 10, dtype="u8").tolist() == [250]
    assert Tensor.arange_step(-(2**63), 2**63, 2**62).tolist() == [-(2**63), -(2**62), 0, 2**62]
    assert Tensor.arange_step(2**63 - 1, -(2**63) - 1, -(2**63)).tolist() == [2**63 - 1, -1]
    assert Tensor.arange(2**62, 2**62 + 2).tolist() == [2**62, 2**62 + 1]


@pytest.mark.parametrize(
    ("arguments", "dtype", "text"),
    [
        ((0, 1, 0), None, "got step 0; takes any other"),
        ((0.0, 1.0, 0.0), None, "got step 0.0; takes any other"),
        ((0.0, 1.0, 1e-60), "f32", "step 1e-60 is 0 in f32; takes any other"),
        ((0, 3000, 1), "f16", "adding 1.0 to 2048.0 changes nothing in f16; takes a larger step or a wider dtype"),
        ((0, 300, 1), "bf16", "adding 1.0 to 256.0 changes nothing in bf16"),
        ((2.0**24, 2.0**24 + 8, 1.0), "f32", "adding 1.0 to 16777216.0 changes nothing in f32"),
        ((0, 300, 1), "u8", "0 to 299 leave u8; takes integers from 0 to 255"),
        ((-1, 3, 1), "u32", "-1 to 2 leave u32; takes integers from 0 to"),
        ((0, 1.5, 1), "i64", "got 1.5 beside i64; takes integers"),
        ((0, 1e5, 1), "f16", "got 0, 100000.0, 1; takes numbers that f16 holds"),
        ((0, float("inf"), 1), None, "got inf for end; takes a finite number"),
        ((float("nan"), 1, 1), None, "got nan for start; takes a finite number"),
        ((0, "3", 1), None, "got '3' for end; takes a finite number"),
        ((0, 10**400, 1), None, "got an integer of 1329 bits"),
        ((0, 1, True), None, "got True for step; takes a finite number"),
        ((0, 2**40, 1), None, "got 0 to 1099511627776 by 1, too many numbers; takes up to 2147483647"),
    ],
)
def test_ranges_that_are_none(arguments: Any, dtype: Any, text: str) -> None:
    for kind in (Tensor, LazyTensor):
        with pytest.raises(mc.Error, match=re.escape(f"arange_step: {text}")):
            kind.arange_step(*arguments, dtype=dtype)


# --- random numbers -----------------------------------------------------------------------------

FLOATS = pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32, DType.F64], ids=str)


@KINDS
@FLOATS
def test_random_numbers_repeat_after_seeding(kind: Any, dtype: DType) -> None:
    def draw() -> list[Any]:
        Device.Cpu.set_seed(11)
        base = kind.zeros((50,), dtype)
        drawn = [
            kind.rand(-2.0, 3.0, (50,), dtype=dtype),
            kind.randn(1.0, 2.0, (50,), dtype=dtype),
            base.rand_like(0.0, 1.0),
            base.randn_like(0.0, 1.0),
        ]
        assert all(tensor.dtype is dtype and tensor.dims() == [50] for tensor in drawn)
        return [tensor.tolist() for tensor in drawn]

    first = draw()
    assert draw() == first
    assert len({tuple(values) for values in first}) == 4


@FLOATS
def test_random_numbers_are_spread_as_they_should(dtype: DType) -> None:
    """Bounds are six standard errors of 20,000 draws, plus half a unit of the dtype's last place at 3."""
    Device.Cpu.set_seed(0)
    n, unit = 20_000, {"bf16": 2**-7, "f16": 2**-10}.get(dtype.as_str(), 0.0)
    uniform = Tensor.rand(-1.0, 3.0, (n,), dtype=dtype).to_dtype("f64").numpy()
    assert uniform.min() >= -1.0
    assert uniform.max() <= 3.0
    assert abs(uniform.mean() - 1.0) < 6 * (4 / 12**0.5) / n**0.5 + unit
    assert abs(uniform.std() - 4 / 12**0.5) < 0.05
    normal = Tensor.randn(2.0, 0.5, (n,), dtype=dtype).to_dtype("f64").numpy()
    assert abs(normal.mean() - 2.0) < 6 * 0.5 / n**0.5 + unit
    assert abs(normal.std() - 0.5) < 0.03
    assert np.all(Tensor.randn(2.0, 0.0, (9,), dtype=dtype).numpy() == 2.0)


@KINDS
def test_random_numbers_end_no_gradient_and_are_drawn_once(kind: Any) -> None:
    x = kind.ones((3,))
    drawn = x.rand_like(0.0, 1.0)
    assert drawn.track_op() is False
    assert drawn.tolist() == drawn.tolist()
    assert kind.rand(0, 1, ()).dims() == []
    assert kind.randn(0, 1, (0, 2)).dims() == [0, 2]


@KINDS
@pytest.mark.parametrize("dtype", ["u8", "i64"])
def test_there_are_no_random_integers(kind: Any, dtype: str) -> None:
    x = kind.ones((3,), dtype)
    for call in (
        lambda: kind.rand(0.0, 1.0, 2, dtype=dtype),
        lambda: kind.randn(0.0, 1.0, 2, dtype=dtype),
        lambda: x.rand_like(0.0, 1.0),
        lambda: x.randn_like(0.0, 1.0),
    ):
        with pytest.raises(error.UnsupportedDTypeForOpError, match=f"got dtype {dtype}; takes bf16, f16, f32 or f64"):
            call()


@KINDS
@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("rand", (1.0, 1.0), "got lo 1.0, up 1.0; takes lo < up"),
        ("rand", (2.0, 1.0), "got lo 2.0, up 1.0; takes lo < up"),
        ("rand", (float("nan"), 1.0), "got nan for lo; takes a finite number"),
        ("rand", (0.0, float("inf")), "got inf for up; takes a finite number"),
        ("rand", ("0", 1.0), "got '0' for lo; takes a finite number"),
        ("randn", (0.0, -1.0), "got std -1.0; takes std >= 0"),
        ("randn", (0.0, float("nan")), "got nan for std; takes a finite number"),
        ("randn", (0.0, float("inf")), "got inf for std; takes a finite number"),
        ("randn", (None, 1.0), "got None for mean; takes a finite number"),
    ],
)
def test_random_numbers_that_are_none(kind: Any, name: str, arguments: Any, text: str) -> None:
    with pytest.raises(mc.Error, match=re.escape(f"{name}: {text}")):
        getattr(kind, name)(*arguments, (2,))
    with pytest.raises(mc.Error, match=re.escape(f"{name}_like: {text}")):
        getattr(kind.ones(2), f"{name}_like")(*arguments)

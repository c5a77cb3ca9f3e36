"""Tensors from Python's numbers and from other libraries' arrays: dtypes, layouts, no shared memory, refusals."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var, error

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor, Var])
NUMPY_DTYPES = ["uint8", "int16", "uint32", "int32", "int64", "float16", "float32", "float64"]


# --- numbers and lists ------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (3, DType.I64, ()),
        ((1, 2), DType.I64, (2,)),
        ([[1, 2], (3, 4)], DType.I64, (2, 2)),
        ([True, 2], DType.I64, (2,)),
        ([1, 2.0], DType.F32, (2,)),
        ([[[[[1.0]]]]], DType.F32, (1, 1, 1, 1, 1)),
        ([[]], DType.F32, (1, 0)),
        ([np.float64(1.0)], DType.F32, (1,)),
        ([np.uint8(1), np.uint8(2)], DType.I64, (2,)),
        (range(3), DType.I64, (3,)),
        (2**63 - 1, DType.I64, ()),
        (-(2**63), DType.I64, ()),
    ],
    ids=repr,
)
def test_numbers_of_lists(kind: Any, data: Any, dtype: DType, shape: tuple[int, ...]) -> None:
    tensor = kind.new(data)
    assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)
    np.testing.assert_array_equal(tensor.numpy(), np.array(data))


@KINDS
@pytest.mark.parametrize(
    ("data", "dtype", "text"),
    [
        (
            2**63,
            None,
            "9223372036854775808 is no i64; takes an integer from -9223372036854775808 to 9223372036854775807",
        ),
        ([0, 2**64], None, "18446744073709551616 is no i64; takes an integer from"),
        ([1, -(2**63) - 1], None, "-9223372036854775809 is no i64"),
        (300, "u8", "300 is no u8; takes an integer from 0 to 255"),
        ([0, -1], "u32", "-1 is no u32; takes an integer from 0 to 4294967295"),
        ([1.0, 1.5], "i32", "1.5 is no i32; takes an integer from -2147483648 to 2147483647"),
        ([float("nan")], "i64", "nan is no i64"),
        ([float("inf")], "u8", "inf is no u8"),
        ([40000], DType.I16, "40000 is no i16"),
    ],
)
def test_numbers_that_do_not_fit(kind: Any, data: Any, dtype: Any, text: str) -> None:
    with pytest.raises(mc.Error, match=re.escape(f"new: {text}")):
        kind.new(data, dtype=dtype)


def test_numbers_that_fit_exactly() -> None:
    assert Tensor([1.0, -2.0], dtype="i32").to_vec1() == [1, -2]
    assert Tensor([0, 255], dtype="u8").to_vec1() == [0, 255]
    assert Tensor([True, False], dtype="i64").to_vec1() == [1, 0]
    assert Tensor([2**53 + 1], dtype="i64").to_vec1() == [2**53 + 1]
    assert Tensor([0.1], dtype="f64").to_vec1() == [0.1]
    assert Tensor([1e6], dtype="f16").to_vec1() == [float("inf")]


@KINDS
@pytest.mark.parametrize("data", [[[1], [1, 2]], [1, [2]], [[1, 2], 3], [[[1]], [[1, 2]]]], ids=str)
def test_ragged_lists(kind: Any, data: Any) -> None:
    with pytest.raises(
        error.ShapeMismatchError, match="new: got lists of different lengths; takes a rectangular nesting"
    ):
        kind.new(data)


@KINDS
@pytest.mark.parametrize(
    "data", ["1", None, [None], ["a", 1], 1j, {1: 2}, {1, 2}, object()], ids=lambda data: type(data).__name__
)
def test_what_holds_no_numbers(kind: Any, data: Any) -> None:
    with pytest.raises(error.ArgumentTypeError, match=r"new: got .*; takes numbers, nested lists of them, or an array"):
        kind.new(data)


@KINDS
@pytest.mark.parametrize("data", [[2**64 - 1, 0], [2**63, -1], [2**63], [-(2**63) - 1, 2**63]], ids=str)
def test_integers_that_need_more_than_an_i64_are_refused_not_rounded(kind: Any, data: Any) -> None:
    with pytest.raises(error.Error, match=r"new: -?[0-9]+ is no i64"):
        kind.new(data)
    assert kind.new([2.0**70, 1]).dtype is DType.F32


# --- NumPy ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(NUMPY_DTYPES).flatmap(
        lambda name: hnp.arrays(
            st.sampled_from([np.dtype(name), np.dtype(name).newbyteorder(">")]),
            hnp.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=4),
        )
    ),
    st.data(),
)
def test_numpy_arrays_of_every_layout(array: np.ndarray[Any, Any], data: Any) -> None:
    axes = data.draw(st.permutations(range(array.ndim)))
    steps = tuple(slice(None, None, data.draw(st.sampled_from([1, -1, 2]))) for _ in axes)
    view = array.transpose(axes)[steps]
    for tensor in (Tensor.from_numpy(view), Tensor(view), LazyTensor.from_numpy(view)):
        assert tensor.dtype is DType.of(array.dtype)
        assert tuple(tensor.shape) == view.shape
        np.testing.assert_array_equal(tensor.numpy(), view)
        assert tensor.numpy().dtype == array.dtype.newbyteorder("=")


@KINDS
@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.float16(1.5), DType.F16),
        (np.array(2.5), DType.F64),
        (np.array([True, False]), DType.U8),
        (np.array([0, 65535], np.uint16), DType.U32),
        (np.array([1], ">u2"), DType.U32),
        (np.broadcast_to(np.int16(7), (2, 3)), DType.I16),
        (np.frombuffer(b"\1\2", np.uint8), DType.U8),
        (np.zeros((0, 3), np.float32), DType.F32),
    ],
    ids=repr,
)
def test_numpy_dtypes(kind: Any, array: Any, dtype: DType) -> None:
    tensor = kind.from_numpy(array)
    assert (tensor.dtype, tuple(tensor.shape)) == (dtype, array.shape)
    np.testing.assert_array_equal(tensor.numpy(), array)


@KINDS
@pytest.mark.parametrize("name", ["int8", "uint64", "complex64", "U3", "O", "datetime64[s]"])
def test_numpy_dtypes_that_candle_lacks(kind: Any, name: str) -> None:
    array = np.zeros(2, name)
    for call in (kind.from_numpy, kind.new):
        with pytest.raises(error.DTypeParseError, match=re.escape(f"dtype: cannot read {array.dtype!r}; takes u8")):
            call(array)


def test_an_array_is_cast_as_to_dtype_does() -> None:
    array = np.array([1.9, -1.9, 300.0, np.nan])
    assert Tensor(array, dtype="u8").to_vec1() == Tensor(array).to_dtype("u8").to_vec1() == [1, 0, 255, 0]
    assert Tensor(np.array([300]), dtype="u8").to_vec1() == [44]
    assert Tensor(mx.array([2.5]), dtype="i64").to_vec1() == [2]


@KINDS
def test_memory_is_not_shared_with_who_may_change_it(kind: Any) -> None:
    for array in (np.ones(4, np.float32), np.ones(1 << 16, np.float64), np.ones((3, 3), np.int64).T):
        tensor = kind.from_numpy(array)
        array[...] = 9
        assert np.all(tensor.numpy() == 1)
    given_ = mx.array([1.0, 2.0])
    tensor = kind.from_mlx(given_)
    given_[0] = 9.0
    given_ += 1.0
    assert tensor.to_vec1() == [1.0, 2.0] if kind is not LazyTensor else tensor.eval().to_vec1() == [1.0, 2.0]
    buffer = bytearray(b"\1\0\2\0")
    tensor = kind.from_raw_buffer(buffer, "i16", (2,))
    buffer[0] = 7
    assert tensor.tolist() == [1, 2]
    values = [1.0, 2.0]
    tensor = kind.from_vec(values, 2)
    values[0] = 5.0
    assert tensor.tolist() == [1.0, 2.0]


def test_from_numpy_takes_arrays_only() -> None:
    with pytest.raises(mc.Error, match="from_numpy: got list; takes a NumPy array, new takes lists"):
        Tensor.from_numpy([1.0])


# --- MLX, bytes, iterables, DLPack ------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (mx.array([1, 0]) > 0, DType.U8),
        (mx.array([1, 65535], mx.uint16), DType.U32),
        (mx.array([[1.5]], mx.bfloat16), DType.BF16),
        (mx.array(3), DType.I32),
        (mx.arange(6).reshape(2, 3).T, DType.I32),
        (mx.zeros((0, 2)), DType.F32),
    ],
    ids=["bool", "u16", "bf16", "scalar", "transposed", "empty"],
)
def test_mlx_arrays(kind: Any, array: mx.array, dtype: DType) -> None:
    for tensor in (kind.from_mlx(array), kind.new(array)):
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, array.shape)
        assert tensor.tolist() == array.astype(dtype.mlx()).tolist()


def test_mlx_arrays_that_candle_lacks() -> None:
    for dtype in (mx.int8, mx.uint64, mx.complex64):
        with pytest.raises(error.DTypeParseError, match=f"dtype: cannot read mlx.core.{str(dtype).rpartition('.')[2]}"):
            Tensor.from_mlx(mx.zeros(2, dtype))
    with pytest.raises(mc.Error, match=re.escape("from_mlx: got ndarray; takes an mx.array")):
        Tensor.from_mlx(np.zeros(2))  # type: ignore[arg-type]


@KINDS
@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_raw_bytes(kind: Any, name: str) -> None:
    values = np.arange(6).reshape(2, 3).astype(name)
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    for buffer in (data, bytearray(data), memoryview(data)):
        tensor = kind.from_raw_buffer(buffer, DType.of(name), (2, 3))
        assert tensor.dtype is DType.of(name)
        np.testing.assert_array_equal(tensor.numpy(), values)


def test_raw_bytes_of_bf16_and_wrong_ones() -> None:
    ones = b"\x80\x3f\x00\x40"
    assert Tensor.from_raw_buffer(ones, "bf16", 2).to_vec1() == [1.0, 2.0]
    assert Tensor.from_raw_buffer(b"", "f32", (0, 4)).dims() == [0, 4]
    with pytest.raises(
        error.ShapeMismatchError, match=re.escape("from_raw_buffer: 2 elements do not fit shape (3,) of 3")
    ):
        Tensor.from_raw_buffer(ones, "bf16", 3)
    with pytest.raises(mc.Error, match="from_raw_buffer: got 4 bytes; takes a multiple of 8, the size of f64"):
        Tensor.from_raw_buffer(ones, "f64", 1)
    with pytest.raises(mc.Error, match="from_raw_buffer: got str; takes bytes"):
        Tensor.from_raw_buffer("ones", "f32", 1)


@KINDS
def test_flat_lists_in_a_shape(kind: Any) -> None:
    for call in (kind.from_vec, kind.from_slice):
        assert call([1, 2, 3, 4], (2, 2)).tolist() == [[1, 2], [3, 4]]
        assert call([1, 2, 3, 4], (-1, 2)).tolist() == call([1, 2, 3, 4], ((), 2)).tolist() == [[1, 2], [3, 4]]
        assert call((5,), ()).tolist() == 5
        assert call([], (0, 3)).dims() == [0, 3]
        assert call([1, 2], 2, dtype="f16").dtype is DType.F16
        assert call(np.arange(4, dtype=np.uint8), (2, 2)).dtype is DType.U8
        name = call.__name__
        for shape, text in [
            ((3,), "4 elements do not fit shape (3,) of 3"),
            ((3, -1), "4 elements do not fill (3, -1)"),
            ((0, -1), "4 elements do not fill (0, -1)"),
            ((-1, -1), "got (-1, -1); takes at most one hole"),
        ]:
            with pytest.raises(error.ShapeMismatchError, match=re.escape(f"{name}: {text}")):
                call([1, 2, 3, 4], shape)
        with pytest.raises(error.UnexpectedNumberOfDimsError, match=re.escape(f"{name}: got rank 2, shape (1, 2)")):
            call([[1, 2]], (2,))
        with pytest.raises(error.UnexpectedNumberOfDimsError, match=re.escape(f"{name}: got rank 0")):
            call(1, ())


@KINDS
def test_iterables(kind: Any) -> None:
    assert kind.from_iter(x / 2 for x in range(3)).tolist() == [0.0, 0.5, 1.0]
    assert kind.from_iter(iter(())).dims() == [0]
    assert kind.from_iter({3: "a"}.keys(), dtype="u8").dtype is DType.U8
    with pytest.raises(error.UnexpectedNumberOfDimsError, match=re.escape("from_iter: got rank 2, shape (2, 1)")):
        kind.from_iter([[1], [2]])


class OnlyDLPack:
    """An array of which nothing but its DLPack side is seen."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


@KINDS
@pytest.mark.parametrize("name", [*NUMPY_DTYPES, "bool", "uint16"])
def test_dlpack(kind: Any, name: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(name).T
    for tensor in (kind.from_dlpack(OnlyDLPack(array)), kind.new(OnlyDLPack(array)), kind.from_dlpack(array)):
        assert tensor.dtype is {"bool": DType.U8, "uint16": DType.U32}.get(name) or DType.of(name)
        np.testing.assert_array_equal(tensor.numpy(), array)
    tensor = kind.from_dlpack(OnlyDLPack(array))
    array[...] = 0
    assert np.any(tensor.numpy())


def test_dlpack_of_what_is_none() -> None:
    with pytest.raises(mc.Error, match="from_dlpack: got list; takes an object with __dlpack__"):
        Tensor.from_dlpack([1])
    with pytest.raises(error.DTypeParseError, match=r"cannot read dtype\('int8'\)"):
        Tensor.from_dlpack(OnlyDLPack(np.zeros(1, np.int8)))

    class Broken:
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("it is on another device")

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    with pytest.raises(mc.Error, match="from_dlpack: it is on another device"):
        Tensor.from_dlpack(Broken())


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    for dtype, want in [
        (torch.float32, DType.F32),
        (torch.float64, DType.F64),
        (torch.float16, DType.F16),
        (torch.bfloat16, DType.BF16),
        (torch.int64, DType.I64),
        (torch.int32, DType.I32),
        (torch.int16, DType.I16),
        (torch.uint8, DType.U8),
        (torch.bool, DType.U8),
    ]:
        source = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype).t()
        for tensor in (Tensor.from_dlpack(source), Tensor(source), LazyTensor.from_dlpack(source)):
            assert tensor.dtype is want
            assert tensor.tolist() == [[0, 1], [1, 0], [1, 1]]
        tensor = Tensor.from_dlpack(source)
        source.zero_()
        assert tensor.tolist() == [[0, 1], [1, 0], [1, 1]]
    with pytest.raises(error.DTypeParseError):
        Tensor.from_dlpack(torch.zeros(2, dtype=torch.int8))
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(mc.Error, match="from_dlpack: Can't export tensors that require gradient"):
            Tensor.from_dlpack(torch.zeros(2, dtype=dtype, requires_grad=True))


# --- tensors as data --------------------------------------------------------------------------


@KINDS
def test_a_tensor_as_data_is_taken_unless_its_gradient_would_end(kind: Any) -> None:
    plain = Tensor([1.0, 2.0])
    assert kind.new(plain).tolist() == [1.0, 2.0]
    assert kind.new(LazyTensor.new([1.0]) + 1.0, dtype="i64").tolist() == [2]
    w = Var([1.0, 2.0])
    text = "new: got a tensor that a gradient goes through, which would end here; takes data: use the tensor as it is"
    with pytest.raises(mc.Error, match=re.escape(text)):
        kind.new(w * 2.0)
    assert kind.new((w * 2.0).detach()).tolist() == [2.0, 4.0]


@KINDS
def test_a_list_of_tensors_is_joined_by_stack(kind: Any) -> None:
    for data in ([Tensor([1.0]), Tensor([2.0])], [[Var(1.0)]]):
        with pytest.raises(mc.Error, match=re.escape("takes numbers, Tensor.stack joins tensors")):
            kind.new(data)


# --- room -------------------------------------------------------------------------------------


@KINDS
def test_f64_off_the_cpu_is_refused_by_each_constructor(kind: Any) -> None:
    gpu = mc.Device(mc.DeviceType.Cuda, 0)
    calls: dict[str, Any] = {
        "new": lambda: kind.new(np.zeros(2), gpu),
        "zeros": lambda: kind.zeros(2, "f64", gpu),
        "ones": lambda: kind.ones(2, "f64", gpu),
        "empty": lambda: kind.empty(2, "f64", gpu),
        "full": lambda: kind.full(1.0, 2, gpu, "f64"),
        "eye": lambda: kind.eye(2, "f64", gpu),
        "arange": lambda: kind.arange(0, 2, gpu, "f64"),
        "rand": lambda: kind.rand(0.0, 1.0, 2, gpu, "f64"),
        "randn": lambda: kind.randn(0.0, 1.0, 2, gpu, "f64"),
        "from_vec": lambda: kind.from_vec([1.0], 1, gpu, "f64"),
        "from_iter": lambda: kind.from_iter([1.0], gpu, "f64"),
        "from_numpy": lambda: kind.from_numpy(np.zeros(2), gpu),
        "from_raw_buffer": lambda: kind.from_raw_buffer(bytes(8), "f64", 1, gpu),
    }
    for op, call in calls.items():
        text = rf"{op}: got dtype f64; takes f64 on Device.Cpu only, got Device.Cuda\(0\)"
        with pytest.raises(error.UnsupportedDTypeForOpError, match=text):
            call()


@pytest.mark.slow
def test_more_than_memory_holds_is_refused_instead_of_ending_the_process() -> None:
    """Run in a process of its own: where it is not refused, MLX ends the process."""
    code = (
        "from metal_candle import Tensor, LazyTensor, DeviceError, Error\n"
        "n, shape = 0, (2**31 - 1, 2**20)\n"
        "for kind in (Tensor, LazyTensor):\n"
        "    for call in (lambda: kind.zeros(shape), lambda: kind.full(1, shape), lambda: kind.randn(0, 1, shape),\n"
        "                 lambda: kind.eye(2**31 - 1), lambda: kind.zeros(2**31)):\n"
        "        try:\n"
        "            call()\n"
        "        except DeviceError.AllocationFailed as error:\n"
        "            n += str(error).startswith('memory allocation failed: ') and error.requested_bytes > 2**40\n"
        "            n += isinstance(error, MemoryError) and 'this machine has' in str(error)\n"
        "        except Error as error:\n"
        "            n += 2 * ('takes sizes up to' in str(error))\n"
        "print(n)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr

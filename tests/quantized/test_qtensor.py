"""QTensor: blocks in, numbers out; rows by id (quantized_embedding), lazy, eager and compiled alike."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor
from metal_candle.error import Error, InvalidIndexError, UnexpectedNumberOfDimsError, UnsupportedDTypeForOpError
from metal_candle.formats.ggml_blocks import decode
from metal_candle.formats.ggml_encode import ENCODED, encode
from metal_candle.quantized import GgmlDType, QMatMul, QTensor

import mlx.core as mx
import numpy as np
import pytest

WRITTEN = [kind for kind in GgmlDType if kind.ggml_name in ENCODED]
K_QUANTS = [kind for kind in GgmlDType if kind not in WRITTEN]
TENSORS = [Tensor, LazyTensor]


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def k_quant(kind: GgmlDType, rows: int, columns: int) -> QTensor:
    """Arbitrary codes under scales that are neither infinite nor NaN."""
    blocks = rows * columns // kind.block_size()
    raw = np.random.default_rng(1).integers(0, 256, (blocks, kind.type_size()), dtype=np.uint8)
    scale = np.float16([0.01]).view(np.uint8)
    places = {"q2k": (80, 82), "q3k": (108,), "q4k": (0, 2), "q5k": (0, 2), "q6k": (208,)}.get(kind.value, ())
    for place in places:
        raw[:, place : place + 2] = scale
    if kind is GgmlDType.Q8K:
        raw[:, :4] = np.float32([0.01]).view(np.uint8)
    return QTensor.from_data(raw, (rows, columns), kind)


# --- types ------------------------------------------------------------------------------------


def test_the_types_are_candles() -> None:
    sizes = [(kind.name, kind.block_size(), kind.type_size(), kind.to_u32()) for kind in GgmlDType]
    assert sizes == [
        ("F32", 1, 4, 0),
        ("F16", 1, 2, 1),
        ("BF16", 1, 2, 30),
        ("Q4_0", 32, 18, 2),
        ("Q4_1", 32, 20, 3),
        ("Q5_0", 32, 22, 6),
        ("Q5_1", 32, 24, 7),
        ("Q8_0", 32, 34, 8),
        ("Q8_1", 32, 36, 9),
        ("Q2K", 256, 84, 10),
        ("Q3K", 256, 110, 11),
        ("Q4K", 256, 144, 12),
        ("Q5K", 256, 176, 13),
        ("Q6K", 256, 210, 14),
        ("Q8K", 256, 292, 15),
    ]
    for kind in GgmlDType:
        for spelled in (kind, kind.value, kind.name, kind.ggml_name):
            assert GgmlDType.of(spelled) is kind
        assert GgmlDType.from_u32(kind.to_u32()) is kind
    assert str(GgmlDType.Q4K) == "q4k"


def test_other_types_are_refused() -> None:
    with pytest.raises(Error, match="ggml dtype: cannot read 'q9_0'; takes f32, f16, bf16, q4_0"):
        GgmlDType.of("q9_0")
    with pytest.raises(Error, match="ggml dtype: got 20; takes 0, 1, 2"):
        GgmlDType.from_u32(20)


# --- in and out -------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("kind", WRITTEN)
def test_quantize_and_back(kind: GgmlDType, tensor: Any) -> None:
    values = numbers((2, 3, 64))
    q = QTensor.quantize(tensor.new(values), kind)
    assert (q.dtype(), q.shape(), q.rank(), q.device()) == (kind, (2, 3, 64), 3, Device.default())
    assert q.storage_size_in_bytes() == len(q.data()) == 384 // kind.block_size() * kind.type_size()
    assert q.data() == encode(values, kind.ggml_name).tobytes() == q.blocks().tobytes()
    expected = decode(q.blocks()[None], kind.ggml_name).reshape(2, 3, 64)
    out = q.dequantize()
    assert (type(out), out.dtype, out.shape) == (Tensor, DType.F32, (2, 3, 64))
    np.testing.assert_array_equal(out.numpy(), expected)
    half = q.dequantize_f16(Device.Cpu)
    assert (half.dtype, half.device) == (DType.F16, Device.Cpu)
    np.testing.assert_array_equal(half.numpy(), expected.astype(np.float16))


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F64])
def test_every_float_goes_through_float32(dtype: DType) -> None:
    x = Tensor.new(numbers((4, 32)).astype(np.float64) * np.pi, Device.Cpu).to_dtype(dtype)
    assert QTensor.quantize(x, "q4_0").data() == QTensor.quantize(x.to_dtype(DType.F32), "q4_0").data()


def test_from_data_takes_bytes_and_arrays() -> None:
    q = QTensor.quantize(Tensor.new(numbers((4, 32))), "q5_1")
    for data in (q.data(), bytearray(q.data()), memoryview(q.data()), q.blocks(), q.blocks().reshape(4, 24)):
        again = QTensor.from_data(data, (4, 32), GgmlDType.Q5_1)
        assert again.data() == q.data()
    assert not q.blocks().flags.writeable
    with pytest.raises(Error, match=r"from_data: got 96 bytes; q5_1 of shape \(5, 32\) takes 120"):
        QTensor.from_data(q.data(), (5, 32), "q5_1")
    with pytest.raises(Error, match="from_data: got a scalar"):
        QTensor.from_data(bytes(4), (), "f32")


def test_empty_tensors() -> None:
    for shape in ((0, 32), (3, 0), (0,)):
        q = QTensor.quantize(Tensor.zeros(shape), "q4_0")
        assert (q.shape(), q.data()) == (shape, b"")
        assert q.dequantize().shape == shape


@pytest.mark.parametrize(
    ("x", "kind", "error", "message"),
    [
        (Tensor.new(1.0), "f32", Error, "quantize: got a scalar; takes one dim or more"),
        (Tensor.zeros((64, 33)), "q4_0", Error, r"got shape \(64, 33\); q4_0 takes a last dim that 32 divides"),
        (Tensor.zeros((2, 32)), "q6k", Error, r"got shape \(2, 32\); q6k takes a last dim that 256 divides"),
        (Tensor.zeros((2, 256)), "q6k", Error, "quantize: Q6_K is only read; takes F32, F16, BF16, Q4_0"),
        (Tensor.zeros((2, 32), DType.U8), "q4_0", UnsupportedDTypeForOpError, "quantize: got dtype u8"),
        (Tensor.zeros((2, 32)), "q3_0", Error, "ggml dtype: cannot read 'q3_0'"),
    ],
)
def test_what_cannot_be_quantised(x: Tensor, kind: str, error: type[Error], message: str) -> None:
    with pytest.raises(error, match=message):
        QTensor.quantize(x, kind)


def test_onto_and_imatrix() -> None:
    x = Tensor.new(numbers((2, 32)), Device.Cpu)
    assert QTensor.quantize_onto(x, "q8_0", Device.Cpu).data() == QTensor.quantize(x, "q8_0").data()
    with pytest.raises(Error, match="quantize_imatrix: got 3 weights for a last dim of 32; takes as many"):
        QTensor.quantize_imatrix(x, [1.0] * 3, "q4_0")
    with pytest.raises(Error, match="quantize_imatrix: q4_0: only K-quants are weighted, and those are only read"):
        QTensor.quantize_imatrix(x, [1.0] * 32, "q4_0")
    with pytest.raises(Error, match="quantize_imatrix_onto: q4k: only K-quants"):
        QTensor.quantize_imatrix_onto(x, [1.0] * 32, "q4k", Device.Cpu)


def test_shown() -> None:
    assert repr(QTensor.quantize(Tensor.zeros((2, 32), device=Device.Cpu), "q4_0")) == "QTensor[[2, 32]; q4_0]"


# --- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("kind", list(GgmlDType))
def test_embedding_is_rows_of_the_dequantised(kind: GgmlDType, tensor: Any) -> None:
    q = k_quant(kind, 9, 256) if kind in K_QUANTS else QTensor.quantize(Tensor.new(numbers((9, 256))), kind)
    table = q.dequantize().numpy()
    assert np.isfinite(table).all()
    for ids in ([[0, 8, 3], [3, 3, 1]], [5], 7, np.empty((0, 2), np.int64)):
        for dtype in (DType.U8, DType.U32, DType.I64):
            rows = q.embedding(tensor.new(ids, dtype=dtype))
            assert type(rows) is tensor
            assert (rows.dtype, rows.shape) == (DType.F32, (*np.shape(ids), 256))
            np.testing.assert_array_equal(rows.numpy(), table[np.asarray(ids, np.int64)])


@pytest.mark.parametrize("kind", ["q4_0", "f16"])
def test_ids_outside(kind: str) -> None:
    q = QTensor.quantize(Tensor.new(numbers((300, 32))), kind)
    assert q.embedding(Tensor.new([255], dtype=DType.U8)).shape == (1, 32)
    for wrong, dtype in itertools.product([300, -1, 2**31], [DType.I64]):
        with pytest.raises(InvalidIndexError, match=f"embedding: index {wrong} is out of range; takes 0..299"):
            q.embedding(Tensor.new([0, wrong], dtype=dtype))
    lazy = q.embedding(LazyTensor.new([2**32 - 1], dtype=DType.U32))
    with pytest.raises(InvalidIndexError, match="index 4294967295"):
        lazy.eval()


@pytest.mark.parametrize("kind", ["q5_1", "f32"])
def test_inside_mx_compile_ids_outside_give_zeros(kind: str) -> None:
    q = QTensor.quantize(Tensor.new(numbers((300, 32))), kind)
    nodes, bits = q.packed()
    arrays = [node.value for node in nodes]
    run = mx.compile(lambda ids: mc.graph.Operation.QuantizedEmbedding(bits).lower(ids, *arrays))
    table = q.dequantize().numpy()
    got = np.array(run(mx.array([[1, 299], [300, -1]])))
    np.testing.assert_array_equal(got, np.stack([table[[1, 299]], np.zeros((2, 32), np.float32)]))
    np.testing.assert_array_equal(np.array(run(mx.array([255], mx.uint8))), table[[255]])


def test_embedding_wants_a_matrix_and_ids() -> None:
    with pytest.raises(UnexpectedNumberOfDimsError, match="embedding: got rank 3"):
        QTensor.quantize(Tensor.zeros((2, 2, 32)), "q4_0").embedding(Tensor.new([0]))
    q = QTensor.quantize(Tensor.zeros((2, 32)), "q4_0")
    with pytest.raises(UnsupportedDTypeForOpError, match="embedding: got dtype f32; takes ids of"):
        q.embedding(LazyTensor.new([0.5]))
    empty = QTensor.quantize(Tensor.zeros((0, 32)), "q4_0")
    with pytest.raises(InvalidIndexError):
        empty.embedding(Tensor.new([0]))
    assert empty.embedding(Tensor.zeros((0,), DType.I64)).shape == (0, 32)


@pytest.mark.parametrize("kind", [GgmlDType.Q4_0, GgmlDType.F16])
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
def test_copies_and_pickles(kind: GgmlDType, again: Any) -> None:
    made = QTensor.quantize(Tensor.new(numbers((4, 64)), Device.Cpu), kind)
    ids = Tensor.new([2, 0], Device.Cpu)
    rows = made.embedding(ids).tolist()  # what is kept beside the blocks is there
    other = again(made)
    assert (other.dtype(), other.shape(), other.device()) == (kind, (4, 64), Device.Cpu)
    assert other.data() == made.data()
    assert other.embedding(ids).tolist() == rows
    matmul = again(QMatMul.from_qtensor(made))
    xs = Tensor.new(numbers((3, 64), 1), Device.Cpu).to_dtype(DType.F32)
    assert matmul.forward(xs).tolist() == QMatMul.from_qtensor(made).forward(xs).tolist()


def test_what_is_no_tensor_is_named() -> None:
    array = numbers((2, 64))
    tensor = Tensor.new(array, Device.Cpu)
    q = QTensor.quantize(tensor, "q4_0")
    matmul = QMatMul.from_qtensor(q)
    for call, message in [
        (lambda: QTensor.quantize(array, "q4_0"), "quantize: got ndarray; takes a Tensor or LazyTensor"),
        (lambda: QTensor.quantize(q, "q4_0"), "quantize: got QTensor; takes a Tensor"),
        (lambda: QTensor.quantize_onto(array, "q4_0"), "quantize_onto: got ndarray"),
        (lambda: QTensor.quantize_imatrix(array, [], "q4_0"), "quantize_imatrix: got ndarray"),
        (lambda: QTensor.quantize_imatrix_onto(array, [], "q4_0"), "quantize_imatrix_onto: got ndarray"),
        (lambda: QTensor.from_data(10**12, (1,), "f32"), "from_data: got int for the blocks; takes bytes or an array"),
        (lambda: QTensor.from_data(np.array([None]), (1,), "f32"), "from_data: got an array of object"),
        (lambda: q.embedding(array), "embedding: got ndarray"),
        (lambda: QMatMul.from_qtensor(tensor), "QMatMul.from_qtensor: got Tensor; takes a QTensor"),
        (lambda: QMatMul.QTensor(tensor), "QMatMul.QTensor: got Tensor; takes a QTensor"),
        (lambda: QMatMul.Tensor(q), "QMatMul.Tensor: got QTensor; takes a Tensor"),
        (lambda: QMatMul.TensorF16(array), "QMatMul.TensorF16: got ndarray"),
        (lambda: matmul.forward(array), "QMatMul.forward: got ndarray; takes a Tensor or LazyTensor"),
        (lambda: matmul.forward_via_f16(array), "QMatMul.forward_via_f16: got ndarray"),
        (lambda: matmul.embedding([1]), "QMatMul.embedding: got list"),
    ]:
        with pytest.raises(Error, match=message):
            call()

"""QMatMul and its record quantized_linear: the dequantised product, with a gradient."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var
from metal_candle.error import (
    DTypeMismatchError,
    Error,
    ShapeMismatchBinaryOpError,
    UnexpectedNumberOfDimsError,
    UnsupportedDTypeForOpError,
)
from metal_candle.quantized import GgmlDType, QMatMul, QTensor, gguf_file

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import GRADIENT, VALUE, Tolerance, assert_near

BLOCKS = [GgmlDType.Q4_0, GgmlDType.Q4_1, GgmlDType.Q5_0, GgmlDType.Q5_1, GgmlDType.Q8_0, GgmlDType.Q8_1]
TENSORS = [Tensor, LazyTensor]


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def weight(kind: GgmlDType | str, shape: tuple[int, int] = (48, 64)) -> QTensor:
    return QTensor.quantize(Tensor.new(numbers(shape), Device.Cpu), kind)


def scaled(tolerance: Tolerance, want: np.ndarray[Any, Any]) -> Tolerance:
    """A sum's error goes with its terms, not with what is left of them."""
    return tolerance._replace(absolute=tolerance.absolute * max(1.0, float(np.abs(want).max(initial=0.0))))


# --- the product ------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("dtype", [DType.F32, DType.F64, DType.F16, DType.BF16])
@pytest.mark.parametrize("kind", BLOCKS)
def test_the_product_is_the_dequantised_one(kind: GgmlDType, dtype: DType, tensor: Any) -> None:
    q = weight(kind)
    w = q.dequantize().numpy().astype(np.float64)
    layer = QMatMul.from_qtensor(q)
    assert layer.variant == "QTensor"
    # Few rows and many take different paths, and 5 bits change over elsewhere.
    for leading in ((1,), (2,), (3,), (24,), (25,), (2, 3), (1, 2, 2, 2), (0,), (2, 0)):
        x = tensor.new(numbers((*leading, 64), 1), Device.Cpu).to_dtype(dtype)
        got = layer.forward(x)
        assert type(got) is tensor
        assert (got.shape, got.dtype) == ((*leading, 48), dtype)
        want = x.to_dtype(DType.F64).numpy() @ w.T
        assert_near(got.to_dtype(DType.F64).numpy(), want, scaled(VALUE[dtype], want))
        np.testing.assert_array_equal(layer(x).numpy(), got.numpy())


@given(
    st.sampled_from(BLOCKS), st.integers(0, 30), st.integers(0, 5), st.integers(0, 5), st.sampled_from([1e-6, 1.0, 1e4])
)
@settings(max_examples=60, deadline=None)
def test_any_shape(kind: GgmlDType, rows: int, blocks: int, out: int, scale: float) -> None:
    q = QTensor.quantize(Tensor.new(numbers((out, blocks * 32)) * np.float32(scale), Device.Cpu), kind)
    x = numbers((rows, blocks * 32), 1)
    got = QMatMul.from_qtensor(q).forward(Tensor.new(x, Device.Cpu)).numpy()
    w = q.dequantize().numpy()
    want = x @ w.T
    assert got.shape == (rows, out)
    # What a product may be off by goes with the terms: their sum of absolute values, in float32's 2^-24 each.
    bound = np.abs(x) @ np.abs(w).T * 2.0**-20
    assert (np.abs(got - want) <= bound + 1e-30).all()


def test_a_large_weight_is_unpacked_in_parts() -> None:
    q = weight("q8_0", (2100, 2048))  # 4.3 million elements, a part is 4.2
    x = numbers((4, 2048), 1)
    want = x.astype(np.float64) @ q.dequantize().numpy().T.astype(np.float64)
    v = Var.new(x, Device.Cpu)
    got = QMatMul.from_qtensor(q).forward(v)
    assert_near(got.numpy(), want, scaled(VALUE[DType.F32], want))
    grad = got.sum_all().backward()[v].numpy()
    want = np.broadcast_to(q.dequantize().numpy().astype(np.float64).sum(0), (4, 2048))
    assert_near(grad, want, scaled(VALUE[DType.F32], want))


def test_infinite_scales_and_k_quants_are_multiplied_dequantised() -> None:
    q = QTensor.quantize(Tensor.new(np.full((1, 32), 3e38, np.float32), Device.Cpu), "q8_0")
    x = Tensor.new(np.ones((1, 32), np.float32), Device.Cpu)
    assert q.packed()[1] == 32
    assert QMatMul.from_qtensor(q).forward(x).numpy().tolist() == [[np.inf]]
    raw = np.random.default_rng(0).integers(0, 256, (3, 210), dtype=np.uint8)
    raw[:, 208:] = np.float16([0.01]).view(np.uint8)
    k = QTensor.from_data(raw, (3, 256), "q6k", Device.Cpu)
    layer = QMatMul.from_qtensor(k)
    assert layer.variant == "QTensor"
    for dtype in (DType.F32, DType.F16, DType.F64):
        x = Tensor.new(numbers((5, 256)), Device.Cpu).to_dtype(dtype)
        want = x.to_dtype(DType.F64).numpy() @ k.dequantize().numpy().astype(np.float64).T
        got = layer.forward(x)
        assert got.dtype is dtype
        assert_near(got.to_dtype(DType.F64).numpy(), want, scaled(VALUE[dtype], want))


def test_lazy_tensors_record_it() -> None:
    x = LazyTensor.new(numbers((3, 64)), Device.Cpu)
    layer = QMatMul.from_qtensor(weight("q4_0"))
    y = layer.forward(layer.forward(x.affine(2.0, 1.0)).get(0).reshape((1, 48)).pad_with_zeros(1, 0, 16))
    assert not y.is_evaluated()
    assert y._node.operation.name() == "quantized_linear"
    eager = Tensor.new(numbers((3, 64)), Device.Cpu)
    first = layer.forward(eager.affine(2.0, 1.0)).get(0).reshape((1, 48)).pad_with_zeros(1, 0, 16)
    np.testing.assert_array_equal(y.numpy(), layer.forward(first).numpy())


def test_compiled_is_equal() -> None:
    layer, x = QMatMul.from_qtensor(weight("q5_0")), Tensor.new(numbers((3, 64)), Device.Cpu)
    compiled = mc.compile(lambda x: layer.forward(x))
    np.testing.assert_array_equal(compiled(x).numpy(), layer.forward(x).numpy())


def test_threads_share_a_weight() -> None:
    layer, x = QMatMul.from_qtensor(weight("q4_1")), numbers((2, 64))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: layer.forward(Tensor.new(x, Device.Cpu)).numpy(), range(16)))
    for result in results:
        np.testing.assert_array_equal(result, results[0])


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [DType.F64, DType.F32])
@pytest.mark.parametrize("kind", [*BLOCKS, GgmlDType.Q8K])
def test_gradient_against_central_differences(kind: GgmlDType, dtype: DType) -> None:
    if kind is GgmlDType.Q8K:
        raw = np.random.default_rng(0).integers(0, 256, (4, 292), dtype=np.uint8)
        raw[:, :4] = np.float32([0.02]).view(np.uint8)
        q = QTensor.from_data(raw, (4, 256), kind, Device.Cpu)
    else:
        q = weight(kind, (4, 32))
    w = q.dequantize().numpy().astype(np.float64)
    values = numbers((2, 3, w.shape[1]), 1).astype(np.float64)
    upstream = np.random.default_rng(2).normal(size=(2, 3, 4))

    def loss(x: np.ndarray[Any, Any]) -> float:
        return float(((x @ w.T) * upstream).sum())

    want = np.zeros_like(values)
    for place in np.ndindex(*values.shape):
        above, below = values.copy(), values.copy()
        above[place] += 1e-5
        below[place] -= 1e-5
        want[place] = (loss(above) - loss(below)) / 2e-5
    v = Var.new(values, Device.Cpu, dtype)
    for x in (v, LazyTensor.from_tensor(v)):
        y = QMatMul.from_qtensor(q).forward(x)
        assert y.track_op()
        grads = y.mul(type(y).new(upstream, Device.Cpu, dtype)).sum_all().backward()
        assert grads[v].dtype is dtype
        assert_near(grads[v].numpy(), want, GRADIENT[dtype])


def test_halves_have_their_gradient() -> None:
    q = weight("q4_0")
    for dtype in (DType.F16, DType.BF16):
        v = Var.new(numbers((3, 64)), Device.Cpu, dtype)
        grad = QMatMul.from_qtensor(q).forward(v).sum_all().backward()[v]
        want = np.broadcast_to(q.dequantize().numpy().sum(0), (3, 64))
        assert grad.dtype is dtype
        assert_near(grad.numpy(), want, scaled(VALUE[dtype], want))


def test_what_depends_on_no_variable_has_no_gradient() -> None:
    assert not QMatMul.from_qtensor(weight("q4_0")).forward(Tensor.new(numbers((1, 64)), Device.Cpu)).track_op()


# --- variants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_floats_become_a_tensor(kind: str) -> None:
    q = weight(kind)
    layer = QMatMul.from_arc(q)
    assert layer.variant == "Tensor"
    x = Tensor.new(numbers((2, 3, 64), 1), Device.Cpu)
    want = x.numpy() @ q.dequantize().numpy().T
    assert_near(layer.forward(x).numpy(), want, scaled(VALUE[DType.F32], want))
    with pytest.raises(DTypeMismatchError):
        layer.forward(x.to_dtype(DType.F16))


def test_dequantize_is_asked_for() -> None:
    q, x = weight("q4_0"), Tensor.new(numbers((3, 64), 1), Device.Cpu)
    full, half = QMatMul.from_qtensor(q, "f32"), QMatMul.from_qtensor(q, DType.F16)
    assert (full.variant, half.variant) == ("Tensor", "TensorF16")
    want = x.numpy() @ q.dequantize().numpy().T
    assert_near(full.forward(x).numpy(), want, scaled(VALUE[DType.F32], want))
    for got in (half.forward(x), full.forward_via_f16(x), QMatMul.from_qtensor(q).forward_via_f16(x)):
        assert got.dtype is DType.F32
        assert_near(got.numpy(), want, scaled(VALUE[DType.F16], want))
    for layer in (full, half, QMatMul.QTensor(q)):
        assert layer.dequantize_f16().dtype is DType.F16
        np.testing.assert_array_equal(layer.dequantize_f16().numpy(), q.dequantize_f16().numpy())
    with pytest.raises(Error, match="QMatMul: got dequantize=u8; takes f32, f16 or None"):
        QMatMul.from_qtensor(q, "u8")


def test_the_tensor_variant_trains() -> None:
    w, x = Var.new(numbers((4, 8)), Device.Cpu), Tensor.new(numbers((3, 8), 1), Device.Cpu)
    for xs in (x, LazyTensor.from_tensor(x)):
        grads = QMatMul.Tensor(w).forward(xs).sum_all().backward()
        assert_near(grads[w].numpy(), np.broadcast_to(x.numpy().sum(0), (4, 8)), VALUE[DType.F32])
    assert QMatMul.TensorF16(w).dequantize_f16().dtype is DType.F16


@pytest.mark.parametrize("tensor", TENSORS)
def test_embedding_of_each_variant(tensor: Any) -> None:
    q, ids = weight("q8_0"), tensor.new([[1, 2], [0, 47]])
    rows = q.dequantize().numpy()[[[1, 2], [0, 47]]]
    for layer in (QMatMul.QTensor(q), QMatMul.from_qtensor(q, "f32")):
        got = layer.embedding(ids)
        assert type(got) is tensor
        np.testing.assert_array_equal(got.numpy(), rows)
    half = QMatMul.from_qtensor(q, "f16").embedding(ids)
    assert half.dtype is DType.F16
    np.testing.assert_array_equal(half.numpy(), rows.astype(np.float16))


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("layer", [QMatMul.from_qtensor(weight(kind)) for kind in ("q4_0", "f32")], ids=repr)
def test_what_does_not_fit_is_refused_when_recorded(tensor: Any, layer: QMatMul) -> None:
    for shape in ((3, 63), (64,), (), (2, 64, 3)):
        with pytest.raises(ShapeMismatchBinaryOpError, match=r"\(48, 64\)"):
            layer.forward(tensor.zeros(shape))
    with pytest.raises(TypeError) as raised:
        layer.forward(tensor.zeros((3, 64), DType.I64))
    assert isinstance(raised.value, (UnsupportedDTypeForOpError, DTypeMismatchError))


def test_a_weight_has_two_dims() -> None:
    with pytest.raises(UnexpectedNumberOfDimsError, match="QMatMul: got rank 3"):
        QMatMul.from_qtensor(QTensor.quantize(Tensor.zeros((2, 2, 32)), "q4_0"))
    assert repr(QMatMul.from_qtensor(weight("q4_0"))) == "QMatMul.QTensor(QTensor[[48, 64]; q4_0])"


# --- a real model -----------------------------------------------------------------------------


@pytest.mark.slow
def test_projections_of_smollm2(smollm2_gguf: Path) -> None:
    content = gguf_file.Content.read(smollm2_gguf)
    for name in ("blk.3.ffn_up.weight", "blk.7.attn_q.weight"):
        q = content.tensor(smollm2_gguf, name, Device.Cpu)
        assert not q.dtype().is_float()
        layer, w = QMatMul.from_qtensor(q), q.dequantize().numpy()
        for rows in (1, 2, 40):
            x = numbers((rows, q.shape()[1]), rows)
            want = x.astype(np.float64) @ w.T.astype(np.float64)
            got = layer.forward(Tensor.new(x, Device.Cpu)).numpy()
            assert_near(got, want, scaled(VALUE[DType.F32], want))
    ids = Tensor.new([[0, 49151], [17, 17]])
    embedding = content.tensor(smollm2_gguf, "token_embd.weight", Device.default())
    table = embedding.dequantize().numpy()
    np.testing.assert_array_equal(embedding.embedding(ids).numpy(), table[ids.numpy()])

"""Files and quantised tensors: what candle's binding writes is read here and the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import DType, Tensor
from metal_candle.quantized import GgmlDType, QMatMul, QTensor, gguf_file

import numpy as np
import pytest
from both import DTYPES, KINDS, Operand, candle, f32, theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

utils = pytest.importorskip("candle.utils")
# What ours quantises; the K-quants are read only.
QUANTIZED = ["q4_0", "q4_1", "q8_0"]


def test_safetensors_travel_both_ways(tmp_path: Path) -> None:
    operands = {str(dtype): Operand(np.array([[0, 1, 2], [3, 100, 200]]), dtype) for dtype in DTYPES}
    utils.save_safetensors(str(tmp_path / "theirs.safetensors"), {name: o.theirs() for name, o in operands.items()})
    for name, tensor in mc.safetensors.load(tmp_path / "theirs.safetensors", "cpu").items():
        assert str(tensor.dtype) == name
        np.testing.assert_array_equal(tensor.numpy(), operands[name].values)
    mc.safetensors.save({name: o.ours(Tensor) for name, o in operands.items()}, tmp_path / "ours.safetensors")
    read = utils.load_safetensors(str(tmp_path / "ours.safetensors"))
    assert set(read) == set(operands)
    for name, tensor in read.items():
        assert str(tensor.dtype).lower() == name
        assert tensor.values() == operands[name].values.tolist()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_quantisation_gives_the_same_numbers(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(QUANTIZED))
    elements = st.floats(-100, 100, width=32)
    values = data.draw(hnp.arrays(np.float32, (2, 32), elements=elements, fill=st.nothing()))
    operand = f32(values)
    want = theirs(lambda t: t.quantize(kind).dequantize(), operand).values
    got = QTensor.quantize(operand.ours(Tensor), kind).dequantize().numpy()
    # Where a number lies halfway between two codes, a scale's last digit decides: then they are one code apart.
    step = (np.abs(values).max(axis=1, keepdims=True) * 2 / (254 if kind == "q8_0" else 14)).astype(np.float64)
    assert np.all(np.abs(got - want) <= step * 1.01)
    assert np.mean(got != want) <= 0.05


@pytest.mark.parametrize("kind", QUANTIZED)
def test_the_product_with_a_quantised_weight(kind: str) -> None:
    generator = np.random.default_rng(3)
    weight, xs = (f32(generator.normal(size=shape).astype(np.float32)) for shape in ((5, 64), (3, 64)))
    want = theirs(lambda w, x: w.quantize(kind).matmul_t(x), weight, xs)
    layer = QMatMul.from_qtensor(QTensor.quantize(weight.ours(Tensor), kind))
    exact = xs.values.astype(np.float64) @ weight.values.astype(np.float64).T
    for tensor in KINDS:
        product = layer.forward(xs.ours(tensor))
        assert (tuple(product.shape), str(product.dtype)) == (want.shape, want.dtype)
        # candle rounds xs to 8 bits, too: 1/254 of the largest in a block of 32, and the errors of 64 terms add up.
        np.testing.assert_allclose(product.numpy(), want.values, atol=64**0.5 * 3 / 254)
        weights = QTensor.quantize(weight.ours(Tensor), kind).dequantize().numpy().astype(np.float64)
        np.testing.assert_allclose(product.numpy(), xs.values.astype(np.float64) @ weights.T, rtol=1e-5, atol=1e-5)
    assert exact.shape == want.shape


@pytest.mark.parametrize(("shape", "kind"), [((31,), "q4_0"), ((2, 33), "q8_0"), ((), "q8_0"), ((32,), "q9_9")])
def test_what_cannot_be_quantised_is_refused_by_both(shape: tuple[int, ...], kind: str) -> None:
    operand = f32(np.ones(shape, np.float32))
    with pytest.raises((ValueError, TypeError)):
        operand.theirs().quantize(kind)
    with pytest.raises(mc.Error):
        QTensor.quantize(operand.ours(Tensor), kind)


def test_gguf_travels_both_ways(tmp_path: Path) -> None:
    values = np.linspace(-3, 5, 128, dtype=np.float32).reshape(2, 64)
    metadata: dict[str, Any] = {"name": "a model", "layers": 7, "scale": 0.5, "tags": ["x", "y"]}
    utils.save_gguf(
        str(tmp_path / "theirs.gguf"), {kind: f32(values).theirs().quantize(kind) for kind in QUANTIZED}, metadata
    )
    content = gguf_file.Content.read(tmp_path / "theirs.gguf")
    assert content.metadata["name"].to_string() == "a model"
    assert content.metadata["layers"].plain() == 7
    assert content.metadata["scale"].plain() == 0.5
    assert [item.to_string() for item in content.metadata["tags"].to_vec()] == ["x", "y"]
    for kind in QUANTIZED:
        tensor = content.tensor(tmp_path / "theirs.gguf", kind, "cpu")
        assert (tuple(tensor.shape()), tensor.dtype()) == ((2, 64), GgmlDType.of(kind))
        want = theirs(lambda t, k=kind: t.quantize(k).dequantize(), f32(values)).values
        np.testing.assert_array_equal(tensor.dequantize().numpy(), want)

    written = {kind: QTensor.quantize(f32(values).ours(Tensor), kind) for kind in QUANTIZED}
    gguf_file.write(tmp_path / "ours.gguf", metadata, written)
    tensors, read = utils.load_gguf(str(tmp_path / "ours.gguf"))
    assert read == metadata
    assert set(tensors) == set(QUANTIZED)
    for kind, tensor in tensors.items():
        assert tuple(tensor.shape) == (2, 64)
        np.testing.assert_array_equal(np.array(tensor.dequantize().values()), written[kind].dequantize().numpy())


def test_a_quantised_tensor_says_what_it_is() -> None:
    operand = f32(np.ones((2, 64), np.float32))
    other, own = operand.theirs().quantize("q4_0"), QTensor.quantize(operand.ours(Tensor), "q4_0")
    assert (tuple(own.shape()), own.rank()) == (tuple(other.shape), other.rank)
    assert str(own.dtype()) == str(other.ggml_dtype).lower()
    assert str(other.dequantize().dtype).lower() == str(own.dequantize().dtype) == str(DType.F32)
    assert candle.QTensor is type(other)

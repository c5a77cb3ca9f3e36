"""The same calls on candle's own binding: equal blocks, near products, files that both read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metal_candle import Device, Tensor
from metal_candle.quantized import GgmlDType, QMatMul, QTensor, gguf_file

import numpy as np
import pytest

candle = pytest.importorskip("candle")

WRITTEN = ["f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]
K_QUANTS = ["q2k", "q3k", "q4k", "q5k", "q6k", "q8k"]


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    values[0] = 0
    values[-1] = np.round(values[-1] * 2) / 2
    return values


def theirs(values: np.ndarray[Any, Any]) -> Any:
    return candle.Tensor(values.astype(float).tolist()).to_dtype("f32")


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e4])
@pytest.mark.parametrize("kind", WRITTEN)
def test_quantised_numbers_are_equal(kind: str, scale: float) -> None:
    values = numbers((50, 256)) * np.float32(scale)
    want = np.array(theirs(values).quantize(kind).dequantize().values(), np.float32)
    got = QTensor.quantize(Tensor.new(values), kind).dequantize().numpy()
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", [kind for kind in WRITTEN if kind[0] == "q"])
def test_products_are_near(kind: str) -> None:
    w, x = numbers((32, 256)), numbers((5, 256), 1)
    want = np.array(theirs(w).quantize(kind).matmul_t(theirs(x)).values())
    q = QTensor.quantize(Tensor.new(w), kind)
    got = QMatMul.from_qtensor(q).forward(Tensor.new(x)).numpy()
    # candle rounds x to blocks of 8 bits first: by up to half of 1/127 of a block's largest, and the scale to F16.
    largest = np.repeat(np.abs(x).reshape(5, 8, 32).max(axis=2), 32, axis=1)
    bound = (largest / 254 + largest * 2.0**-11) @ np.abs(q.dequantize().numpy()).T
    assert (np.abs(got - want) <= bound * 1.001 + 1e-4).all()
    assert np.corrcoef(got[1:].ravel(), want[1:].ravel())[0, 1] > 0.9999


def test_candle_reads_what_is_written(tmp_path: Path) -> None:
    path, values = tmp_path / "a.gguf", numbers((4, 64))
    held = {kind: QTensor.quantize(Tensor.new(values), kind) for kind in WRITTEN}
    gguf_file.write(path, {"name": "x", "count": 3, "eps": 0.5, "words": ["a", "b"], "big": 2**40, "on": True}, held)
    tensors, metadata = candle.utils.load_gguf(str(path))
    assert metadata == {"name": "x", "count": 3, "eps": 0.5, "words": ["a", "b"], "big": 2**40, "on": True}
    assert tensors.keys() == held.keys()
    for kind, q in held.items():
        assert (tensors[kind].ggml_dtype.lower(), tensors[kind].shape) == (kind, (4, 64))
        np.testing.assert_array_equal(np.array(tensors[kind].dequantize().values()), q.dequantize().numpy())


def test_what_candle_writes_is_read(tmp_path: Path) -> None:
    path, values = tmp_path / "a.gguf", numbers((3, 512))
    held = {kind: theirs(values).quantize(kind) for kind in WRITTEN + K_QUANTS}
    candle.utils.save_gguf(str(path), held, {"name": "x", "count": 3, "words": ["a", "b"]})
    content = gguf_file.Content.read(path)
    assert content.magic is gguf_file.VersionedMagic.GgufV2
    assert {key: value.plain() for key, value in content.metadata.items()} == {
        "name": "x",
        "count": 3,
        "words": ["a", "b"],
    }
    for kind, want in held.items():
        q = content.tensor(path, kind, Device.Cpu)
        assert (q.dtype(), q.shape()) == (GgmlDType.of(kind), (3, 512))
        np.testing.assert_array_equal(q.dequantize().numpy(), np.array(want.dequantize().values(), np.float32))

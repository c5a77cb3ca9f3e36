"""gguf_file: content with typed metadata, tensors on demand, writing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from metal_candle import Device, DType, LazyTensor, Tensor
from metal_candle.error import CannotFindTensorError, Error, ModelError
from metal_candle.models.tokenizer import Tokenizer
from metal_candle.quantized import GgmlDType, QTensor, gguf_file
from metal_candle.quantized.gguf_file import Content, TensorInfo, Value, ValueType, VersionedMagic

import gguf
import numpy as np
import pytest

KINDS = ["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q8_1"]


def tensors() -> dict[str, QTensor]:
    x = Tensor.new(np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32))
    return {f"blk.0.{kind}": QTensor.quantize(x, kind) for kind in KINDS}


METADATA = {"general.architecture": "llama", "llama.block_count": 2, "eps": 1e-5, "words": ["a", "b"], "on": True}


@pytest.mark.parametrize("way", ["path", "file"])
def test_round_trip(tmp_path: Path, way: str) -> None:
    path, held = tmp_path / "a.gguf", tensors()
    if way == "path":
        gguf_file.write(path, METADATA, held)
    else:
        with path.open("wb") as file:
            gguf_file.write(file, METADATA.items(), held.items())
    with path.open("rb") as file:
        source: Any = path if way == "path" else file
        content = Content.read(source)
        assert content.magic is VersionedMagic.GgufV3
        assert content.metadata["llama.block_count"] == Value.U32(2)
        assert content.metadata["llama.block_count"].to_u64() == 2
        assert content.metadata["eps"].value_type() is ValueType.F32
        assert [word.to_string() for word in content.metadata["words"].to_vec()] == ["a", "b"]
        assert content.metadata["on"].to_bool()
        assert content.tensor_data_offset % gguf_file.DEFAULT_ALIGNMENT == 0
        for name, q in held.items():
            info = content.tensor_infos[name]
            assert (info.ggml_dtype, info.shape) == (q.dtype(), (3, 64))
            for read in (
                content.tensor(source, name),
                content.tensor(source, name, Device.Cpu),
                info.read(source, content.tensor_data_offset, Device.Cpu),
            ):
                assert (read.data(), read.dtype(), read.shape()) == (q.data(), q.dtype(), q.shape())


def test_reading_the_header_reads_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    gguf_file.write(path, {}, {"w": QTensor.quantize(Tensor.ones((1024, 1024)), "f32")})

    class Counting(io.FileIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            got = super().read(size) or b""
            Counting.taken += len(got)
            return got

    with Counting(str(path)) as file:
        content = Content.read(file)
        assert Counting.taken < 200
        assert content.tensor(file, "w").dequantize().sum_all().to_scalar() == 1024**2


def test_a_missing_tensor_is_named_with_its_nearest(tmp_path: Path) -> None:
    gguf_file.write(tmp_path / "a.gguf", {}, tensors())
    content = Content.read(tmp_path / "a.gguf")
    with pytest.raises(CannotFindTensorError, match=r"cannot find tensor blk\.0\.q4_; nearest: blk\.0\.q4_"):
        content.tensor(tmp_path / "a.gguf", "blk.0.q4_")


@pytest.mark.parametrize(
    ("metadata", "held", "message"),
    [
        ([("a", 1), ("a", 2)], {}, "metadata key a is there twice"),
        ({3: 1}, {}, "got int for the name of a metadata key; takes text"),
        ({"a": None}, {}, "gguf value: got NoneType"),
        ({}, [("a", QTensor.quantize(Tensor.ones((1,)), "f32"))] * 2, "tensor a is there twice"),
        ({}, {"a": Tensor.ones((1,))}, "tensor a is a Tensor; takes a QTensor"),
        ({}, {"a": LazyTensor.ones((1,))}, "tensor a is a LazyTensor; takes a QTensor"),
        ({}, {"a": QTensor.quantize(Tensor.ones((0, 32)), "q4_0")}, "none of size 0"),
    ],
)
def test_what_is_not_written(tmp_path: Path, metadata: Any, held: Any, message: str) -> None:
    with pytest.raises(Error, match=message):
        gguf_file.write(tmp_path / "a.gguf", metadata, held)
    assert list(tmp_path.iterdir()) == []


def test_an_info_that_points_outside_is_an_error(tmp_path: Path) -> None:
    gguf_file.write(tmp_path / "a.gguf", {}, tensors())
    info = TensorInfo(GgmlDType.F32, Tensor.ones((1 << 20,)).shape, 0)
    with pytest.raises(ModelError.InvalidFormat, match="truncated inside a tensor"):
        info.read(tmp_path / "a.gguf", 0)


def test_k_quants_are_read(tmp_path: Path) -> None:
    path = tmp_path / "k.gguf"
    raw = np.random.default_rng(0).integers(0, 128, (2, 210), dtype=np.uint8)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", raw, raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    q = Content.read(path).tensor(path, "w")
    assert (q.dtype(), q.shape()) == (GgmlDType.Q6K, (2, 256))
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q6_K)
    np.testing.assert_array_equal(q.dequantize().numpy(), expected)
    gguf_file.write(tmp_path / "again.gguf", {}, {"w": q})  # its blocks can be copied, though not made
    assert Content.read(tmp_path / "again.gguf").tensor(tmp_path / "again.gguf", "w").data() == raw.tobytes()


def test_a_tokenizer_from_content(tmp_path: Path, tiny_metadata: dict[str, Any]) -> None:
    gguf_file.write(tmp_path / "a.gguf", tiny_metadata, {})
    content = Content.read(tmp_path / "a.gguf")
    plain, typed = Tokenizer.from_gguf(tiny_metadata), Tokenizer.from_gguf(content)
    assert typed.encode("then an oat") == plain.encode("then an oat")
    assert typed.eos_token_ids == plain.eos_token_ids


@pytest.mark.slow
def test_smollm2(smollm2_gguf: Path, tmp_path: Path) -> None:
    content = Content.read(smollm2_gguf)
    assert content.metadata["general.architecture"].to_string() == "llama"
    name = "blk.0.ffn_gate.weight"
    q = content.tensor(smollm2_gguf, name)
    assert q.dequantize(Device.Cpu).dtype is DType.F32
    gguf_file.write(tmp_path / "one.gguf", content.metadata, {name: q})
    again = Content.read(tmp_path / "one.gguf")
    assert again.metadata == content.metadata
    assert again.tensor(tmp_path / "one.gguf", name).data() == q.data()

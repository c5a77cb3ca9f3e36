"""ModelLoader: files, folders, GGUF; dtypes; validation before anything is read; errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import ArgumentTypeError, Device, DType, ModelError
from metal_candle.formats import safetensors
from metal_candle.formats.raw import to_bytes
from metal_candle.models import ModelConfig, ModelLoader, Qwen, load_model
from metal_candle.nn import VarBuilder

import mlx.core as mx
import numpy as np
import pytest

ModelDir = Callable[..., Path]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {"a": mx.arange(6, dtype=mx.float32).reshape(2, 3), "b": mx.ones((4,), mx.float16), "ids": mx.array([3])}
    safetensors.save(tmp_path / "model.safetensors", tensors)
    return tmp_path / "model.safetensors"


def test_tensors_come_as_they_are_stored(file: Path) -> None:
    loader = ModelLoader(Device.Cpu)
    assert (loader.device, loader.dtype) == (Device.Cpu, None)
    found = loader.load(file)
    assert {name: (tuple(t.shape), t.dtype) for name, t in found.items()} == {
        "a": ((2, 3), DType.F32),
        "b": ((4,), DType.F16),
        "ids": ((1,), DType.I32),
    }
    assert found["a"].to_vec2() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert found["a"].device == Device.Cpu


def test_a_dtype_converts_floats_and_leaves_integers(file: Path) -> None:
    loader = ModelLoader(Device.Cpu)
    assert loader.with_dtype(DType.BF16) is loader
    assert loader.dtype is DType.BF16
    assert [loader.load(str(file))[name].dtype for name in ("a", "b", "ids")] == [DType.BF16, DType.BF16, DType.I32]
    assert repr(loader) == "ModelLoader(Device.Cpu, bf16)"


def test_inspect_reads_the_header_only(file: Path) -> None:
    loader = ModelLoader()
    wanted = {"a": (2, 3), "b": (4,), "ids": (1,)}
    assert {name: tuple(shape) for name, shape in loader.inspect(file).items()} == wanted
    # A dtype that tensors do not have is no reason not to say the shape.
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"F4" ').replace(b'"shape":[2,3]', b'"shape":[6,8]'))
    assert tuple(loader.inspect(file)["a"]) == (6, 8)
    with pytest.raises(ModelError.InvalidFormat, match="F4"):
        loader.load(file)


def test_validation_names_what_is_missing_or_of_another_shape(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = ModelLoader()
    assert set(loader.load_with_validation(file, {"a": (2, 3), "b": 4})) == {"a", "b", "ids"}

    def never(*_: Any) -> None:
        raise AssertionError("the tensors were read before the check was over")

    monkeypatch.setattr(ModelLoader, "load", never)
    with pytest.raises(ModelError.InvalidFormat, match="missing tensors: c, d"):
        loader.load_with_validation(file, {"a": (2, 3), "c": (1,), "d": (1,)})
    with pytest.raises(ModelError.ShapeMismatch, match=r"a is \(2, 3\), the configuration asks for \(3, 2\)") as caught:
        loader.load_with_validation(file, {"a": (3, 2)})
    assert (caught.value.expected, caught.value.actual) == ((3, 2), (2, 3))


@pytest.mark.parametrize("damage", ["missing", "cut", "noise", "empty folder"])
def test_errors_are_of_two_kinds(file: Path, damage: str) -> None:
    path, kind = file, ModelError.InvalidFormat
    if damage == "missing":
        path, kind = file.with_name("none.safetensors"), ModelError.FileNotFound
    elif damage == "empty folder":
        path, kind = file.parent / "empty", ModelError.FileNotFound
        path.mkdir()
    else:
        file.write_bytes(file.read_bytes()[:-3] if damage == "cut" else b"\xff" * 64)
    for method in (ModelLoader().load, ModelLoader().inspect):
        with pytest.raises(kind) as caught:
            method(path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
    if damage == "missing":
        assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(ArgumentTypeError, match="got 3; takes a path"):
        ModelLoader().load(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_one_file_or_several_makes_a_model(tiny_model_dir: ModelDir, shards: int) -> None:
    folder = tiny_model_dir("qwen2", shards=shards)
    loader = ModelLoader(Device.Cpu).with_dtype("f32")
    tensors = loader.load(folder)
    assert {name: t.shape for name, t in tensors.items()} == loader.inspect(folder)
    if shards > 1:
        assert loader.inspect(folder / "model.safetensors.index.json") == loader.inspect(folder)
    model = Qwen(ModelConfig.from_file(folder / "config.json"), VarBuilder.from_tensors(tensors, "f32"))
    ids = model.embed_tokens.embeddings().zeros((1, 3), "u32")
    assert np.array_equal(model.forward(ids).numpy(), load_model(folder).model.forward(ids).numpy())


def test_a_gguf_file_has_hugging_faces_names(smollm2_gguf: Path) -> None:
    shapes = ModelLoader().inspect(smollm2_gguf)
    assert tuple(shapes["model.layers.29.mlp.down_proj.weight"]) == (576, 1536)
    assert len(shapes) == 272


def test_f64_stays_on_the_cpu(tmp_path: Path) -> None:
    with mx.stream(mx.cpu):
        array = mx.ones((2,), mx.float64)
        assert len(to_bytes(array)) == 16
        safetensors.save(tmp_path / "model.safetensors", {"w": array})
    found = ModelLoader().load(tmp_path / "model.safetensors")["w"]
    assert (found.dtype, found.device) == (DType.F64, Device.Cpu)
    narrowed = ModelLoader().with_dtype("f32").load(tmp_path / "model.safetensors")["w"]
    assert (narrowed.dtype, narrowed.device) == (DType.F32, Device.default())


def test_a_shape_mismatch_is_made_without_a_name_as_in_the_crate() -> None:
    error = ModelError.ShapeMismatch(expected=(3, 2), actual=(2, 3))
    assert str(error) == "shape mismatch: a tensor is (2, 3), the configuration asks for (3, 2)"
    assert error.expected == (3, 2)

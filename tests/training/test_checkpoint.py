"""Checkpoints of adapters: the crate's names and header, all or nothing, errors that name every tensor."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import ArgumentTypeError, CheckpointError, Tensor
from metal_candle.formats import safetensors
from metal_candle.training import (
    CheckpointMetadata,
    LoRAAdapter,
    LoRAAdapterConfig,
    TargetModule,
    load_checkpoint,
    save_checkpoint,
)
from metal_candle.training.checkpoint import CheckpointMismatchError
from metal_candle.training.formats import metal_candle

import mlx.core as mx
import numpy as np
import pytest

METADATA = CheckpointMetadata(global_step=7, loss=1.25, learning_rate=1e-4, timestamp=1_700_000_000)


def made(seed: int = 0, **settings: Any) -> LoRAAdapter:
    values = {"rank": 2, "alpha": 6.0, "target_modules": (TargetModule.QProj, TargetModule.DownProj), **settings}
    adapter = LoRAAdapter(8, 16, 2, LoRAAdapterConfig(**values))
    rng = np.random.default_rng(seed)
    for var in adapter.trainable_variables():
        var.set(Tensor(rng.standard_normal(tuple(var.shape)).astype(np.float32)))
    return adapter


def values(adapter: LoRAAdapter) -> list[np.ndarray]:
    return [var.numpy().copy() for var in adapter.trainable_variables()]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("metadata", [None, METADATA])
def test_a_round_trip_sets_the_variables_in_place(tmp_path: Path, metadata: CheckpointMetadata | None) -> None:
    first, second = made(0), made(1)
    variables = [var.id() for var in second.trainable_variables()]
    held = second.layers()[0][1].lora_a_tensor()
    save_checkpoint(first, tmp_path / "a.safetensors", metadata)
    assert load_checkpoint(second, str(tmp_path / "a.safetensors")) == metadata
    assert same(values(first), values(second))
    assert [var.id() for var in second.trainable_variables()] == variables
    assert np.array_equal(held.numpy(), values(first)[0])


def test_the_file_is_the_crates(tmp_path: Path) -> None:
    adapter = made()
    save_checkpoint(adapter, tmp_path / "a.safetensors", METADATA)
    header = safetensors.read_header(tmp_path / "a.safetensors")
    places = [("q_proj", (8, 2), (2, 8)), ("down_proj", (16, 2), (2, 8))]
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        f"layers.{i}.{module}.{name}": ("F32", shape)
        for i in range(2)
        for module, *shapes in places
        for name, shape in zip(("lora_a", "lora_b"), shapes)
    }
    assert json.loads(header.metadata["checkpoint_metadata"]) == {
        "global_step": 7,
        "loss": 1.25,
        "learning_rate": 1e-4,
        "timestamp": 1_700_000_000,
    }
    stored = metal_candle.load(tmp_path / "a.safetensors")  # without an adapter
    assert (stored.rank, stored.alpha, stored.targets) == (2, 6.0, ("down_proj", "q_proj"))
    layer = adapter.get_layer(1, TargetModule.DownProj)
    assert layer is not None
    factors = stored.factors["model.layers.1.mlp.down_proj"]
    assert np.array_equal(np.array(factors.a), layer.lora_a().numpy())  # unscaled
    save_checkpoint(adapter, tmp_path / "b.safetensors")
    assert "checkpoint_metadata" not in safetensors.read_header(tmp_path / "b.safetensors").metadata


def crate_file(path: Path, change: Callable[[dict[str, mx.array]], None] = lambda _: None, **metadata: str) -> Path:
    """A file as the crate writes it, of the adapter ``made(0)``: without a description of itself."""
    tensors = {}
    for key, layer in made(0).layers():
        tensors[f"{key}.lora_a"], tensors[f"{key}.lora_b"] = layer.lora_a().mlx(), layer.lora_b().mlx()
    change(tensors)
    safetensors.save(path, tensors, metadata)
    return path


def test_a_file_of_the_crate_is_read(tmp_path: Path) -> None:
    text = '{"global_step":3,"loss":0.5,"learning_rate":0.001,"timestamp":12}'
    path = crate_file(tmp_path / "a.safetensors", checkpoint_metadata=text)
    adapter = made(1)
    assert load_checkpoint(adapter, path) == CheckpointMetadata(3, 0.5, 0.001, 12)
    assert same(values(adapter), values(made(0)))


def test_halves_are_widened(tmp_path: Path) -> None:
    def halve(tensors: dict[str, mx.array]) -> None:
        tensors.update({name: tensor.astype(mx.bfloat16) for name, tensor in tensors.items()})

    adapter = made(1)
    load_checkpoint(adapter, crate_file(tmp_path / "a.safetensors", halve))
    for mine, other in zip(values(adapter), values(made(0))):
        np.testing.assert_allclose(mine, other, rtol=2**-8)  # one rounding to bfloat16


def test_every_tensor_that_does_not_fit_is_named_and_nothing_changes(tmp_path: Path) -> None:
    def damage(tensors: dict[str, mx.array]) -> None:
        del tensors["layers.0.q_proj.lora_b"], tensors["layers.1.down_proj.lora_a"]
        tensors["layers.0.v_proj.lora_a"] = mx.zeros((8, 2))
        tensors["layers.2.q_proj.lora_a"] = mx.zeros((8, 2))
        tensors["layers.0.q_proj.lora_a"] = mx.zeros((8, 3))
        tensors["layers.1.q_proj.lora_a"] = mx.zeros((8, 2), mx.int32)

    adapter = made(1)
    before = values(adapter)
    with pytest.raises(CheckpointMismatchError) as caught:
        load_checkpoint(adapter, crate_file(tmp_path / "a.safetensors", damage))
    assert isinstance(caught.value, CheckpointError.InvalidFormat)
    assert str(caught.value).endswith(
        "a.safetensors: is no checkpoint of this adapter: missing layers.0.q_proj.lora_b, layers.1.down_proj.lora_a; "
        "the adapter has no layers.0.v_proj.lora_a, layers.2.q_proj.lora_a; "
        "layers.0.q_proj.lora_a is F32 [8, 3], takes F32 [8, 2], layers.1.q_proj.lora_a is I32 [8, 2], takes F32 [8, 2]"
    )
    assert caught.value.missing == ("layers.0.q_proj.lora_b", "layers.1.down_proj.lora_a")
    assert caught.value.extra == ("layers.0.v_proj.lora_a", "layers.2.q_proj.lora_a")
    assert len(caught.value.misfits) == 2
    assert same(values(adapter), before)


def test_another_alpha_is_refused(tmp_path: Path) -> None:
    save_checkpoint(made(0), tmp_path / "a.safetensors")
    adapter = made(1, alpha=8.0)
    before = values(adapter)
    with pytest.raises(CheckpointError.InvalidFormat, match=r"layers.0.q_proj has alpha / rank 3 there, 4 here"):
        load_checkpoint(adapter, tmp_path / "a.safetensors")
    assert same(values(adapter), before)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "checkpoint_metadata in the header: broken JSON"),
        ("[]", "holds a JSON list"),
        ('{"global_step": 1.5, "loss": 1, "learning_rate": 1, "timestamp": 1}', "global_step is 1.5; takes a whole"),
        ('{"global_step": 1, "loss": "x", "learning_rate": 1, "timestamp": 1}', "loss is 'x'; takes a number"),
        ('{"global_step": 1, "learning_rate": 1, "timestamp": 1}', "loss is None; takes a number"),
    ],
)
def test_damaged_metadata_is_refused_before_anything_changes(tmp_path: Path, text: str, wanted: str) -> None:
    adapter = made(1)
    before = values(adapter)
    with pytest.raises(CheckpointError.InvalidFormat, match=wanted.replace("(", r"\(")):
        load_checkpoint(adapter, crate_file(tmp_path / "a.safetensors", checkpoint_metadata=text))
    assert same(values(adapter), before)


@pytest.mark.parametrize("damage", ["missing", "cut", "noise", "folder"])
def test_a_file_that_cannot_be_read(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        save_checkpoint(made(0), path)
        path.write_bytes(path.read_bytes()[:-40] if damage == "cut" else b"\xff" * 100)
    adapter = made(1)
    before = values(adapter)
    with pytest.raises(CheckpointError.LoadFailed, match=r"a\.safetensors") as caught:
        load_checkpoint(adapter, path)
    assert "\n" not in str(caught.value)
    assert same(values(adapter), before)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(made(0), path)
    old = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("metal_candle.files.os.replace", full)
    with pytest.raises(CheckpointError.SaveFailed, match="No space left on device; what was there is unchanged"):
        save_checkpoint(made(1), path)
    assert path.read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_is_no_adapter_of_a_and_b_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError.InvalidFormat, match="needs at least one module"):
        save_checkpoint(LoRAAdapter(8, 16, 0), tmp_path / "a.safetensors")
    with pytest.raises(ArgumentTypeError, match="got metadata a dict; takes a CheckpointMetadata"):
        save_checkpoint(made(), tmp_path / "a.safetensors", {})  # type: ignore[arg-type]
    assert not (tmp_path / "a.safetensors").exists()


def test_metadata_that_is_not_finite_and_the_time(tmp_path: Path) -> None:
    before = int(time.time())
    metadata = CheckpointMetadata(1, float("nan"), float("inf"))
    assert before <= metadata.timestamp <= time.time()
    save_checkpoint(made(), tmp_path / "a.safetensors", metadata)
    found = load_checkpoint(made(), tmp_path / "a.safetensors")
    assert found is not None
    assert np.isnan(found.loss)
    assert json.loads(metadata.to_json())["loss"] is None

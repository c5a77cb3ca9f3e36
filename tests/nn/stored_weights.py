"""Weights of every kind of file, and builders from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import Tensor, nn
from metal_candle.safetensors import MmapedSafetensors

import numpy as np

NAMES = {
    "model.layers.0.q_proj.weight": (3, 4),
    "model.layers.0.k_proj.weight": (2, 4),
    "model.layers.1.q_proj.weight": (3, 4),
    "model.norm.weight": (4,),
    "scale": (),
    "nothing": (0, 4),
    "odd/name with spaces": (1,),
}


def arrays() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in NAMES.items()}


def tensors() -> dict[str, Tensor]:
    return {name: Tensor.new(array) for name, array in arrays().items()}


def saved(folder: Path, name: str = "a.safetensors", **others: Any) -> Path:
    mc.safetensors.save({**tensors(), **others}, folder / name)
    return folder / name


def from_safetensors(folder: Path) -> nn.VarBuilder:
    return nn.VarBuilder.from_mmaped_safetensors([saved(folder)], "f32")


def from_buffer(folder: Path) -> nn.VarBuilder:
    return nn.VarBuilder.from_buffered_safetensors(saved(folder).read_bytes(), "f32")


def from_slice(folder: Path) -> nn.VarBuilder:
    return nn.VarBuilder.from_slice_safetensors(memoryview(saved(folder).read_bytes()), "f32")


def from_npz(folder: Path) -> nn.VarBuilder:
    np.savez(folder / "a.npz", **arrays())
    return nn.VarBuilder.from_npz(folder / "a.npz", "f32")


def from_shards(folder: Path) -> nn.VarBuilder:
    mc.safetensors.save_sharded(tensors(), folder, max_shard_size=60)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return nn.VarBuilder.from_mmaped_safetensors([folder], "f32")


def from_backend(folder: Path) -> nn.VarBuilder:
    return nn.VarBuilder.from_backend(MmapedSafetensors.new(saved(folder)), "f32")


def renamed(folder: Path) -> nn.VarBuilder:
    return from_safetensors(folder).rename_f(lambda name: name)


SOURCES: list[Callable[[Path], nn.VarBuilder]] = [
    lambda _: nn.VarBuilder.from_tensors(tensors(), "f32"),
    lambda _: nn.VarBuilder.from_tensors(arrays(), "f32"),
    from_safetensors,
    from_buffer,
    from_slice,
    from_npz,
    from_shards,
    from_backend,
    renamed,
]

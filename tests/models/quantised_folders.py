"""Model folders quantised as MLX's tools quantise them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metal_candle.formats import safetensors

import mlx.core as mx

SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
"""Sizes of a tiny model, all of which 128 divides."""


def quantised_folder(
    folder: Path, bits: int = 4, group: int = 64, mode: str = "affine", dtype: mx.Dtype = mx.float32, **own: Any
) -> Path:
    """Quantise a folder's projections and table in place, with ``own`` packings for some ends of names."""
    config = json.loads((folder / "config.json").read_text())
    weights = dict(mx.load(str(folder / "model.safetensors")))
    entry: dict[str, Any] = {"group_size": group, "bits": bits, "mode": mode}
    for name in list(weights):
        path, end = name.rsplit(".", 1)
        if end != "weight" or "norm" in name:
            continue
        packing = {"group_size": group, "bits": bits, "mode": mode}
        for key, (own_bits, own_group) in own.items():
            if path.endswith(key):
                packing = entry[path] = {"group_size": own_group, "bits": own_bits}
        parts = mx.quantize(weights.pop(name).astype(dtype), **packing)
        weights.update(zip((name, f"{path}.scales", f"{path}.biases"), parts))
    config["quantization"] = config["quantization_config"] = entry
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.save(folder / "model.safetensors", weights, safetensors.PT)
    return folder

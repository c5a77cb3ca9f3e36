"""Random adapters as files hold them, for the tests of formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metal_candle.formats import safetensors
from metal_candle.training.formats.folder import CONFIG
from metal_candle.training.formats.stored import Factors, StoredAdapter

import mlx.core as mx

RANK, SCALE = 4, 2.0
# The projections of ``tiny_model_dir``: (in, out).
SIZES = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (32, 16),
    "self_attn.v_proj": (32, 16),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (32, 64),
    "mlp.up_proj": (32, 64),
    "mlp.down_proj": (64, 32),
}


def random_factors(
    names: tuple[str, ...] = ("self_attn.q_proj", "self_attn.v_proj"),
    layers: tuple[int, ...] = (0, 1),
    ranks: Mapping[str, int] | None = None,
    scales: Mapping[str, float] | None = None,
    dtype: mx.Dtype = mx.float32,
    seed: int = 0,
) -> dict[str, Factors]:
    """Factors by module path; ``ranks`` and ``scales`` are those of paths that have their own."""
    factors = {}
    paths = [f"model.layers.{layer}.{name}" for layer in layers for name in names]
    for path, key in zip(paths, mx.random.split(mx.random.key(seed), len(paths))):
        size_in, size_out = SIZES[path.split(".", 3)[3]]
        rank = (ranks or {}).get(path, RANK)
        first, second = mx.random.split(key)
        a = mx.random.normal((size_in, rank), key=first).astype(dtype)
        b = mx.random.normal((rank, size_out), scale=0.3, key=second).astype(dtype)
        factors[path] = Factors(a, b, (scales or {}).get(path, SCALE))
    return factors


def random_adapter(factors: dict[str, Factors] | None = None, **fields: Any) -> StoredAdapter:
    """An adapter of q and v of two layers, rank 4 and scale 2, or of the factors given."""
    found = random_factors() if factors is None else factors
    targets = tuple(sorted({path.rpartition(".")[2] for path in found}))
    values = {"rank": RANK, "scale": SCALE, "dropout": 0.05, "targets": targets, "base_model": "some/model", **fields}
    return StoredAdapter(factors=found, **values)


def same_factors(left: Mapping[str, Factors], right: Mapping[str, Factors]) -> bool:
    """Bit for bit: paths, dtypes, factors, scales."""
    return set(left) == set(right) and all(
        left[path].scale == right[path].scale
        and left[path].a.dtype == right[path].a.dtype
        and bool(mx.array_equal(left[path].a, right[path].a))
        and bool(mx.array_equal(left[path].b, right[path].b))
        for path in left
    )


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change ``adapter_config.json``."""
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def change_tensors(file: Path, change: Callable[[dict[str, mx.array]], object], keep_header: bool = False) -> None:
    """Change the tensors of a file, whose metadata goes unless it is kept."""
    metadata = safetensors.read_header(file).metadata if keep_header else None
    tensors = safetensors.load_file(file)
    mx.eval(tensors)
    change(tensors)
    safetensors.save(file, tensors, metadata)

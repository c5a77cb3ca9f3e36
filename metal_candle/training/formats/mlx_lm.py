"""LoRA adapters in mlx-lm's layout: a folder of ``adapter_config.json`` and ``adapters.safetensors``.

A is (in, rank) and B (rank, out) under ``<module path>.lora_a`` and ``.lora_b``, as here. There is one rank and one
scale for all; the scale is given as it is, without an alpha. Layout and semantics: mlx-lm 0.32, ``tuner/utils.py``.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any

from ...error.expect import FLAG, INTEGER, PATH, optional
from ...error.takes import takes
from ...files import read_json_object
from ...formats.safetensors import Reader
from ...models.target_module import TargetModule
from .folder import CONFIG, check_agreement, plain_number, save_folder
from .stored import STORED, Factors, Format, Pair, StoredAdapter, block_of
from .tensors import (
    OPENED,
    a_dropout,
    a_factor,
    a_rank,
    invalid,
    layers_or_none,
    names_or_none,
    open_tensors,
    read_pairs,
    unreadable,
)
from .uniform import with_one_rank, with_one_scale

WEIGHTS = "adapters.safetensors"
_FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<factor>[ab])")
_LAYERS = "layers_to_transform"
"""PEFT's name for a choice of blocks: mlx-lm passes over it, this package reads it back."""
_MODULES = "target_modules"
"""PEFT's name for a choice of modules, likewise."""

ALL_BLOCKS = -1
"""``num_layers`` for every block; other numbers count from the last block."""


# --- writing ----------------------------------------------------------------------------------


@takes(directory=PATH, adapter=STORED, num_layers=optional(INTEGER), fold_scales=FLAG)
def save(
    directory: str | PathLike[str], adapter: StoredAdapter, num_layers: int | None = None, fold_scales: bool = False
) -> StoredAdapter:
    """Write an adapter folder that mlx-lm loads; dtypes are kept. Returns the adapter as written.

    Smaller ranks are padded with zeros to the largest, and a module's own scale goes into its B: see ``uniform``.
    ``num_layers`` is the model's number of blocks. Adapters of its last n blocks say n; other choices say all blocks
    (-1): mlx-lm leaves B at zero where the file has none. Raises ``CheckpointError.SaveFailed``, and
    ``CheckpointError.InvalidFormat`` for scales that cannot be folded exactly and modules outside the blocks.
    """
    adapter.expect_factors(directory)
    if outside := next((path for path in adapter.factors if block_of(path)[0] is None), None):
        raise invalid(adapter.source, f"{outside} stands outside the blocks; mlx-lm's adapters are in blocks only")
    uniform = with_one_scale(with_one_rank(adapter), "mlx-lm", fold_scales)
    tensors = {}
    for path, factors in uniform.factors.items():
        tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"] = factors.a, factors.b
    config: dict[str, Any] = {
        "fine_tune_type": "lora",
        "model": uniform.base_model,
        "num_layers": _count(uniform, num_layers),
        "lora_parameters": {
            "rank": uniform.rank,
            "scale": plain_number(uniform.scale),
            "dropout": uniform.dropout,
            "keys": sorted({block_of(path)[1] for path in uniform.factors}),
        },
    }
    if config["num_layers"] == ALL_BLOCKS and (layers := uniform.chosen_layers()) is not None:
        config[_LAYERS] = list(layers)
    blocks, keys = uniform.adapted_layers(), config["lora_parameters"]["keys"]
    if len(uniform.factors) != len(blocks) * len(keys):  # not the same modules in every block
        config[_MODULES] = list(uniform.factors)
    save_folder(Path(directory), config, WEIGHTS, tensors, others=("adapter_model.safetensors",))
    return uniform


def _count(adapter: StoredAdapter, num_layers: int | None) -> int:
    """``num_layers`` of the configuration: n where exactly the last n blocks are adapted, else all."""
    layers = adapter.adapted_layers()
    if num_layers is None and adapter.layers is None:
        num_layers = layers[-1] + 1
    if num_layers is not None and layers == tuple(range(num_layers - len(layers), num_layers)):
        return len(layers)
    return ALL_BLOCKS


# --- reading ----------------------------------------------------------------------------------


@takes(directory=PATH, file=OPENED)
def load(directory: str | PathLike[str], file: Reader | None = None) -> StoredAdapter:
    """Read an adapter folder written by ``save`` or by mlx-lm; dtypes are kept.

    ``file`` is the file of tensors where that is open already, or has another name: mlx-lm's copies of earlier steps.

    Raises ``CheckpointError.LoadFailed`` for a file that is missing or truncated and
    ``CheckpointError.InvalidFormat`` for one that is no LoRA adapter (DoRA, full fine-tuning), or contradicts itself.
    """
    folder = Path(directory)
    weights = folder / WEIGHTS if file is None else Path(file.source)
    if not folder.is_dir():
        raise unreadable(f"{folder}: no such adapter folder")
    if missing := [path.name for path in (folder / CONFIG, weights) if not path.is_file()]:
        raise unreadable(f"{folder}: no {' and no '.join(missing)}; an mlx-lm adapter has {CONFIG} and {WEIGHTS}")
    config = _Config(folder / CONFIG)
    pairs = read_pairs(file or open_tensors(weights), _FACTOR, "….lora_a and ….lora_b")
    factors = {path: _factors(weights, path, pair, config) for path, pair in pairs.items()}
    _check_blocks(weights, factors, config)
    return StoredAdapter(
        rank=config.rank,
        scale=config.scale,
        factors=factors,
        dropout=config.dropout,
        targets=config.targets,
        layers=config.layers,
        last_blocks=config.num_layers if config.num_layers > 0 and config.layers is None else None,
        base_model=config.base_model,
        format=Format.MlxLm,
        source=str(directory),
    )


class _Config:
    """``adapter_config.json``, checked. Raises ``CheckpointError``."""

    def __init__(self, path: Path) -> None:
        fields = read_json_object(path, unreadable)
        kind = fields.get("fine_tune_type", "lora")
        if kind != "lora":
            raise invalid(path, f"fine_tune_type is {kind!r}, which is not supported; takes 'lora'")
        lora = fields.get("lora_parameters")
        if not isinstance(lora, dict):
            raise invalid(path, f"lora_parameters is {lora!r}; takes an object of rank, scale, dropout and keys")
        if lora.get("scale") is None and lora.get("alpha") is not None:
            raise invalid(path, "lora_parameters has an alpha and no scale; mlx-lm multiplies by the scale alone")
        self.rank = a_rank(path, lora.get("rank"), "lora_parameters.rank")
        self.scale = a_factor(path, lora.get("scale"), "lora_parameters.scale")
        check_agreement(path, fields, self.scale)
        self.dropout = a_dropout(path, lora.get("dropout", 0.0), "lora_parameters.dropout")
        if lora.get("alpha") is not None:
            alpha = a_factor(path, lora["alpha"], "lora_parameters.alpha")
            if alpha / self.rank != self.scale:
                reason = f"alpha {alpha:g} over rank {self.rank} is {alpha / self.rank:g}, scale is {self.scale:g}"
                raise invalid(path, f"{reason}: they contradict each other; leave alpha out, mlx-lm uses the scale")
        self.keys = lora.get("keys")
        if self.keys is not None and not (
            isinstance(self.keys, list) and all(isinstance(key, str) for key in self.keys)
        ):
            raise invalid(path, f"lora_parameters.keys is {self.keys!r}; takes a list of module paths in a block")
        count = fields.get("num_layers")
        if type(count) is not int:
            shown = "missing" if count is None else repr(count)
            raise invalid(path, f"num_layers is {shown}; takes a number of blocks, or -1 for all")
        self.num_layers: int = count
        self.modules = names_or_none(path, fields.get(_MODULES), _MODULES)
        self.layers = layers_or_none(path, fields.get(_LAYERS), _LAYERS)
        base = fields.get("model")
        self.base_model = None if base is None else str(base)

    @property
    def targets(self) -> tuple[str, ...] | None:
        """The modules it lists: a projection's name alone, other modules' paths in their block."""
        if self.modules is not None:
            return self.modules
        return None if self.keys is None else tuple(sorted(map(target_of, self.keys)))


def target_of(key: str) -> str:
    """The name of a module by its path in a block: a ``TargetModule``'s own where it is one, else the path."""
    target = TargetModule.from_name(key.rpartition(".")[2])
    return target.value if target is not None and key == f"{target.parent}.{target.value}" else key


def _factors(file: Path, path: str, pair: Pair, config: _Config) -> Factors:
    a, b = pair
    for name, array, axis, form in (("a", a, 1, f"(in, {config.rank})"), ("b", b, 0, f"({config.rank}, out)")):
        if array.ndim != 2 or array.shape[axis] != config.rank:
            reason = f"{path}.lora_{name} is {tuple(array.shape)}, {CONFIG} asks for rank {config.rank}: {form}"
            raise invalid(file, reason)
    key = block_of(path)[1]
    if config.keys is not None and key not in config.keys and path not in config.keys:
        raise invalid(file, f"{path} has factors, but {CONFIG} lists {', '.join(config.keys)}")
    return Factors(a, b, config.scale)


def _check_blocks(file: Path, factors: dict[str, Factors], config: _Config) -> None:
    """The blocks with factors lie among ``num_layers`` blocks one behind the other."""
    blocks = sorted({block for path in factors if (block := block_of(path)[0]) is not None})
    if blocks and config.num_layers > 0 and blocks[-1] - blocks[0] >= config.num_layers:
        reason = f"factors for blocks {blocks[0]} to {blocks[-1]}, {CONFIG} says num_layers {config.num_layers}"
        raise invalid(file, f"{reason}; takes those of the last {config.num_layers}")
